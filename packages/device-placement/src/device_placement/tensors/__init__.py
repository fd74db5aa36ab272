"""The tensors of a model: listed, matched with a plan, and stored as views of flat buffers.

May import: _errors, _plan.
"""
