"""The decode engine: checkpoints in, audio chunks out. No HTTP in here."""
