"""What `make check` looks at beyond formatter, linter and types: sizes, promises, names that must not be there."""
