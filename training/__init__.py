"""How the small ChatGLM that ships with this project is made: tokenizer, data, model, training, export.  README.md is the recipe.

It is not part of the installed package, and the server never imports it.
"""
