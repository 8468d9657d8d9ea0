"""The documents, and the program that generates api.md and cli.md."""
