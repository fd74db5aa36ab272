"""Splits that need no plan, as wrappers of ComfyUI's sampling.

May import: plan, ranks, running.
"""
