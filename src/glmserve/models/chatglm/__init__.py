"""ChatGLM-6B, first generation: prefix LM, two-dimensional rotary positions, ungated GELU."""
