"""The nouns of the `drystone` command, one module each."""
