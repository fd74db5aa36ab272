"""The only file that names torch.cuda: which GPUs this process sees, and the one that a worker was given."""

from __future__ import annotations

import torch


def visible_gpus() -> tuple[str, ...]:
    """UUIDs of the GPUs that this process sees, in torch's order, as CUDA_VISIBLE_DEVICES takes them."""
    if not torch.cuda.is_available():
        return ()
    found = (str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count()))
    return tuple(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}" for uuid in found)


def take_only_gpu() -> torch.device:
    """Make the one GPU that this worker sees its current one.

    Raises:
        RuntimeError: it does not see exactly one.
    """
    count = torch.cuda.device_count()
    if count != 1:
        raise RuntimeError(f"this worker was given one GPU but sees {count}; check the driver and CUDA_VISIBLE_DEVICES")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
