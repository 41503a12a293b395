"""The frame under every service. No domain word in it."""
