"""The kinds of files that the demo keeps its model in, so that its steps are the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comfy_nodes.cli._source import GGUF_SUFFIX
from comfy_nodes.cli.demo._model import (
    DemoConfig,
    DemoTransformer,
    load_checkpoint,
    random_weights,
    write_checkpoint,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFile:
    """A kind of file.

    Attributes:
        suffix: of its name.
        contents: what it holds, for people.
        write: takes a path, the shape of the model and a seed, and returns the size of the file in bytes.
        load: gives the model in a file, ready for inference on the CPU.
        load_dense: gives an ordinary model with the same weights, computed out of the quantised ones; None where a file
            holds weights unpacked.
    """

    suffix: str
    contents: str
    write: Callable[[Path, DemoConfig, int], int]
    load: Callable[[Path], DemoTransformer]
    load_dense: Callable[[Path], DemoTransformer] | None = None


def safetensors_file() -> DemoFile:
    """All weights in float32."""
    return DemoFile(
        suffix=".safetensors",
        contents="weights in F32",
        write=lambda path, config, seed: write_checkpoint(path, config, seed=seed),
        load=load_checkpoint,
    )


def gguf_file(type_name: str) -> DemoFile:
    """The matrices of linear layers quantised, the rest in float32.

    Args:
        type_name: ggml type of the matrices, one that the gguf package can quantise to.
    """
    # Only here: a demo of safetensors does not wait for the writer and the reader of another format.
    from comfy_nodes.cli.demo._gguf import load_dequantized, load_quantized, write_quantized

    return DemoFile(
        suffix=GGUF_SUFFIX,
        contents=f"matrices in {type_name}, the rest in F32",
        write=lambda path, config, seed: write_quantized(path, config, random_weights(config, seed=seed), type_name),
        load=load_quantized,
        load_dense=load_dequantized,
    )
