"""Which worker gets which device, decided without touching the environment of the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ray_parallel.workers._errors import InvalidRequestError
from ray_parallel.workers.group._errors import GpuIndexError

Device = Literal["auto", "cpu", "cuda"]


def pin(workers: int, gpu_indices: str, device: Device, gpus: Sequence[str]) -> tuple[str, ...]:
    """What each worker may see of the GPUs, as values of CUDA_VISIBLE_DEVICES.

    Args:
        workers: how many there are.
        gpu_indices: ``"0,2"``: indices among the GPUs that the host sees, one for each worker; empty for the first
            ones.
        device: ``"cpu"`` hides all GPUs, ``"auto"`` does so where there are none.
        gpus: UUIDs of the GPUs that the host sees, in its order.

    Returns:
        A UUID for each worker, or an empty text for each where they compute on the CPU.

    Raises:
        GpuIndexError: an index is no number, is out of range, or the indices are not one for each worker.
        InvalidRequestError: there are fewer GPUs than workers, or none at all where one is asked for.

    >>> pin(2, "0,2", "auto", ["GPU-a", "GPU-b", "GPU-c"])
    ('GPU-a', 'GPU-c')
    >>> pin(2, "", "auto", [])
    ('', '')
    """
    indices = _indices(gpu_indices)
    if device == "cpu" or (device == "auto" and not gpus and not indices):
        if indices:
            raise GpuIndexError(gpu_indices, "the workers compute on the CPU", "leave it empty, or ask for a GPU")
        return ("",) * workers
    if not indices and len(gpus) < workers:
        raise InvalidRequestError(
            f"{workers} workers need {workers} GPUs and this process sees {len(gpus)}; start fewer workers, or let "
            'them compute on the CPU with device="cpu"'
        )
    indices = indices or [*range(workers)]
    missing = [index for index in indices if index >= len(gpus)]
    if missing:
        there = f"only {len(gpus)}, numbered from 0" if gpus else "none"
        raise GpuIndexError(gpu_indices, f"there is no GPU {missing[0]}", f"this process sees {there}")
    if len(indices) != workers:
        raise GpuIndexError(gpu_indices, f"names {len(indices)} GPUs for {workers} workers", "name one for each")
    return tuple(gpus[index] for index in indices)


def _indices(text: str) -> list[int]:
    indices: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not (part.isascii() and part.isdigit()):
            raise GpuIndexError(text, f"{part!r} is no index", 'write numbers separated by commas, such as "0,2"')
        if int(part) in indices:
            raise GpuIndexError(text, f"names GPU {part} twice", "no two workers share a GPU")
        indices.append(int(part))
    return indices
