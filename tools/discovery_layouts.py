"""Write the names, shapes and labelled blocks of some known models as a small file for block-discovery's own tests.

Run `uv run python tools/discovery_layouts.py` after the facts or the libraries changed; it writes
packages/block-discovery/tests/data/layouts.json. Numbered names are folded: ``blocks.{0-39}.norm.weight`` stands for
forty tensors of one shape.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import discovery_oracles

TARGET = Path(__file__).resolve().parents[1] / "packages" / "block-discovery" / "tests" / "data" / "layouts.json"
MODELS = {
    "comfy": (
        *("cascade_c", "flux2_dev", "hidream_i1", "hunyuan_video", "ltxav"),
        *("sd15", "sdxl", "te_qwen25_7b", "vae_kl", "wan21_t2v_14b"),
    ),
    "diffusers": (
        *("AutoencoderKLFlux2", "AutoencoderKLMochi", "Flux3Transformer2DModel", "FluxTransformer2DModel"),
        *("HunyuanVideoTransformer3DModel", "LTX2VideoDiffusionDecoderModel", "NucleusMoEImageTransformer2DModel"),
        *("QwenImageTransformer2DModel", "WanVACETransformer3DModel", "ZImageTransformer2DModel"),
    ),
    "transformers": (
        *("bert", "chinese_clip", "deepseek_v3", "gemma4", "jamba"),
        *("janus", "llama", "mllama", "qwen3_vl_moe", "swin"),
    ),
}

NUMBERS = re.compile(r"(?<![^.])(?:\d+|\{[^}]*\})(?![^.])")
"""Components that are a number, or were one before they were folded."""


def fold(names: Iterable[str]) -> list[str]:
    """Names with numbered components folded into ranges; unfolding gives the same set of names."""
    folded = set(names)
    width = max((len(NUMBERS.findall(name)) for name in folded), default=0)
    for position in range(width):
        folded = _fold_position(folded, position)
    return sorted(folded)


def _fold_position(names: set[str], position: int) -> set[str]:
    """Fold the component at `position` among the numbers of each name, where names differ in it alone."""
    numbers: dict[tuple[str, str], set[int]] = {}
    folded = set()
    for name in names:
        matches = [*NUMBERS.finditer(name)]
        if position < len(matches):
            match = matches[position]
            numbers.setdefault((name[: match.start()], name[match.end() :]), set()).add(int(match[0]))
        else:
            folded.add(name)
    return folded | {f"{before}{_ranges(found)}{after}" for (before, after), found in numbers.items()}


def _ranges(numbers: set[int]) -> str:
    """``{0-3,7}`` for 0, 1, 2, 3 and 7; a single number stays bare."""
    if len(numbers) == 1:
        return str(*numbers)
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return "{" + ",".join(runs) + "}"


def layout(oracle: discovery_oracles.Oracle) -> dict[str, object]:
    """Folded names of one model: its state dict by shape and element type, and its labelled blocks."""
    model = oracle.build()
    alike: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for name, tensor in model.state_dict().items():
        alike.setdefault((tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")), []).append(name)
    tensors = {name: [list(shape), dtype] for (shape, dtype), names in alike.items() for name in fold(names)}
    return {
        "family": oracle.family,
        "name": oracle.name,
        "labels": fold(oracle.label_paths(model)),
        "tensors": dict(sorted(tensors.items())),
    }


def main() -> int:
    """Write the file and print its size."""
    layouts = [
        layout(oracle)
        for family, names in MODELS.items()
        for oracle in discovery_oracles.load(family)
        if oracle.name in names
    ]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in layouts)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{TARGET}: {len(layouts)} models, {TARGET.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
