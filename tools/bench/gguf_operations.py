"""What eager dequantisation asks of a device: operations and elements, counted, against ComfyUI-GGUF.

Usage: python tools/bench/gguf_operations.py [--size 1024] [--types Q4_K,Q8_0] [--comfyui-gguf PATH-OF-A-CHECKOUT]

Without Triton a call costs the host so much an operation and the device so much an element, whatever the machine. Both
are counted here on a simulated device, where no GPU is needed: operations that write (views and empty tensors cost the
device nothing), the elements that they write for each weight, and the bytes of working memory that a call leaves in its
`ScratchPool`, for each weight too. The second call counts, when the tables of the format are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf_cuda import peer_weights
from gguf_dequant import PEER_TYPES, load_peer
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_packing import BLOCK_TYPES, tame_blocks

import simdev
from gguf_loader import ScratchPool, dequantize, type_by_name


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that write, and the elements that they write.

    Attributes:
        operations: so many.
        elements: so many.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation; count it if it writes."""
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not func.is_view and not func.name().startswith("aten::empty"):
            self.operations += 1
            self.elements += found.numel()
        return found


def counted(call: Callable[[], Any]) -> Counter:
    """The second of two calls, counted."""
    call()
    counter = Counter()
    with counter:
        call()
    return counter


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(BLOCK_TYPES))
    parser.add_argument("--comfyui-gguf", type=Path)
    options = parser.parse_args(arguments)
    simdev.install()
    peer = None if options.comfyui_gguf is None else load_peer(options.comfyui_gguf)
    shape, weights = (options.size, options.size), options.size**2
    print(f"{'type':<9}{'operations':>11}{'elements':>10}{'bytes kept':>12}{'peer: operations':>18}{'elements':>10}")
    for name in options.types:
        kind, pool = type_by_name(name), ScratchPool()
        blocks = tame_blocks(kind, weights).to("sim:0")
        out = torch.empty(shape, dtype=torch.bfloat16, device="sim:0")
        ours = counted(partial(dequantize, blocks, kind, shape, dtype=out.dtype, out=out, scratch=pool))
        kept_bytes = pool.scratch().size_bytes / weights
        line = f"{name:<9}{ours.operations:>11}{ours.elements / weights:>10.2f}{kept_bytes:>12.2f}"
        if peer is not None and name in PEER_TYPES:
            theirs = counted(partial(peer_weights, peer, name, blocks, shape))
            line += f"{theirs.operations:>18}{theirs.elements / weights:>10.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
