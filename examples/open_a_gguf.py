"""Open a GGUF file and run a layer on its packed weights: the same numbers as with the dequantised ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from gguf_loader import PackedTensor, load_gguf, load_packed, read_header


def write(path: Path) -> None:
    """Write a GGUF file with one layer quantised to Q8_0, as a converter does."""
    weight = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    writer = gguf.GGUFWriter(path, "flux")
    packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("proj.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("proj.bias", np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write a small file, open it, and compare a packed layer with a dense one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny-Q8_0.gguf")
        write(path)
        print(read_header(path).sizes())

        weights = load_gguf(path).state_dict
        model = torch.nn.Sequential()
        model.add_module("proj", torch.nn.Linear(256, 64))
        load_packed(model, weights)
        x_BC = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            output = model(x_BC)

        packed = weights["proj.weight"]
        assert isinstance(packed, PackedTensor)
        dense = packed.dequantize(torch.float32)
        expected = torch.nn.functional.linear(x_BC, dense, torch.zeros(64))
        print(model)
        print("same output:", torch.equal(output, expected))


if __name__ == "__main__":
    main()
