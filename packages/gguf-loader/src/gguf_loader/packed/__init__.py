"""Weights that stay packed: the tensor, products with it, layers, LoRA, and loading them into a model.

May import: _backend, _dtypes, _errors, _scratch, _types, dequant.
"""
