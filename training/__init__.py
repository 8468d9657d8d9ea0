"""Training of the built-in model: songs from a renderer, a codec, a language model, and their evaluation."""
