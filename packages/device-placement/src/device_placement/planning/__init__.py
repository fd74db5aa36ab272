"""Decide which tensor lives on which device, and predict what that costs: sizes and names, no torch.

May import: _errors, _estimate, _hardware, _numbers, _plan.
"""
