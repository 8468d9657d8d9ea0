"""How the built-in model is made: music from a renderer of its own, a codec, a language model, and the meters."""
