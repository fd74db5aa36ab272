"""Place a model and run it: move tensors to their homes, hook units, copy each unit ahead of its forward.

May import: _errors, _numbers, _plan, _stats, copying, machine, tensors.
"""
