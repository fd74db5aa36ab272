"""The place where packed tensors that version 0.1.0 saved look for their constructor."""

from .packed._tensor import rebuild as _rebuild

__all__ = ["_rebuild"]
