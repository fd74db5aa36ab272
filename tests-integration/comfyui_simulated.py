"""Start ComfyUI with simulated accelerators: `comfyui_simulated.py COUNT CAPACITY_BYTES CHECKOUT ARGUMENTS...`.

ComfyUI has a path for Ascend devices named `npu` and asks for `torch_npu` first, so the devices take that name. They
must exist, and torch must claim no CUDA, before the first module of ComfyUI is imported.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Install the devices and become ComfyUI."""
    count, capacity_bytes, checkout, *arguments = sys.argv[1:]
    sys.path.insert(0, str(ROOT / "tools"))
    import simdev

    torch.version.cuda = None
    simdev.install("npu", int(count), int(capacity_bytes), pretend_torch_npu=True)
    main_file = Path(checkout) / "main.py"
    sys.path[:] = [str(Path(checkout)), *(entry for entry in sys.path if entry != os.fspath(Path(__file__).parent))]
    sys.argv = [str(main_file), *arguments]
    runpy.run_path(str(main_file), run_name="__main__")


if __name__ == "__main__":
    main()
