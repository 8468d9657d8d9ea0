"""The documents; those that are generated, and what generates them."""
