"""Llama-shaped models, as far as the embedded SmolLM2 needs them."""
