"""Parallel plans for unmodified models, on torch.distributed or on threads of one process; no Ray."""
