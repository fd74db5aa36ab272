"""Text encoders in llama.cpp's names, loaded under the names and with the weights of the original checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike

import torch

from gguf_loader._errors import GgufKeyError, listed
from gguf_loader._load import tensor_of
from gguf_loader.file._header import GgufHeader
from gguf_loader.file._mapping import GgufFile, open_gguf
from gguf_loader.packed._tensor import PackedTensor

from ._components import TextComponent, component_of
from ._heads import heads_of, restore_row_order
from ._mmproj import find_mmproj
from ._vision import reassemble, vision_component_of

_LOG = logging.getLogger(__name__)

AUTO = "auto"
"""Look for the vision projector beside the text encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTextEncoder:
    """A text encoder as a model class can load it.

    Attributes:
        header: what the file says of itself; its vocabulary is read by `rebuild_tokenizer`.
        component: the family: t5, llama, mistral, qwen2, qwen2vl, qwen3, qwen3vl, gemma2, gemma3 or gemma4;
            original where the file already has the names of the original checkpoint.
        state_dict: tensors under the names of the original checkpoint; `PackedTensor` where quantised.
        unmapped: names in the files that no table knows; their tensors are not in the state dict.
        projector: header of the vision projector whose tensors are in the state dict, if one is.
    """

    header: GgufHeader
    component: str
    state_dict: dict[str, torch.Tensor]
    unmapped: tuple[str, ...]
    projector: GgufHeader | None


def load_text_encoder(
    path: str | PathLike[str],
    *,
    architecture: str | None = None,
    mmproj: str | PathLike[str] | None = AUTO,
    dtype: torch.dtype = torch.bfloat16,
) -> GgufTextEncoder:
    """Load a text encoder that llama.cpp's converter wrote.

    Names become those of the original checkpoint (`model.layers.0.self_attn.q_proj.weight`, T5's
    `encoder.block.0...`, `visual...`); the rows of q and k get their order back, and Gemma's norms lose the 1 that was
    added to them. All other tensors stay views of the mapped file.

    Args:
        path: the file.
        architecture: what to read it as, where `general.architecture` is missing or unknown.
        mmproj: file of the vision projector; `"auto"` looks beside the text encoder, None loads the text alone.
        dtype: what packed tensors dequantise to by default.

    Raises:
        GgufFormatError: a file is malformed.
        GgufKeyError: the architecture is unknown, or none of the names belong to it.
        GgufMetadataError: the metadata lack the head counts.
        GgufPairingError: the vision projector is ambiguous, or does not belong to this text encoder.
        OSError: a file cannot be opened or mapped.
    """
    file = open_gguf(path)
    component = component_of(file.header, architecture)
    found = None
    if mmproj is not None:
        found = find_mmproj(file.header, component, None if mmproj == AUTO else mmproj)
        if found is None and component.projectors:
            _LOG.info("%s: no vision projector lies beside it; it will read text alone", file.header.path)
    state_dict, unmapped = _text_tensors(file, component, architecture, dtype)
    if found is not None:
        seen, unseen = _vision_tensors(open_gguf(found.path), dtype)
        state_dict |= seen
        unmapped += unseen
    if unmapped:
        _LOG.warning("%s: no name is known for %s", file.header.path, listed(unmapped))
    return GgufTextEncoder(
        header=file.header, component=component.name, state_dict=state_dict, unmapped=unmapped, projector=found
    )


def _text_tensors(
    file: GgufFile, component: TextComponent, architecture: str | None, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    renamed = component.key_map.rename(file.header.tensors, file.header.path)
    if not renamed.sources:
        raise GgufKeyError(
            f"none of its {len(file.header.tensors)} tensors has a name of {component.name}",
            path=file.header.path,
            remedy="load it as a diffusion model, or convert the text encoder with llama.cpp",
        )
    tensors = {}
    for target, source in renamed.sources.items():
        tensor = tensor_of(file, source, dtype)
        heads = heads_of(source, file.header, architecture) if component.interleaved_heads else None
        if heads is not None:
            tensor = restore_row_order(tensor, heads, source)
        if component.norm_offset and target.endswith("norm.weight"):
            tensor = _without_offset(tensor, component.norm_offset)
        tensors[target] = tensor
    return tensors, renamed.unmapped


def _vision_tensors(file: GgufFile, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    component = vision_component_of(file.header)
    stored = {name: tensor_of(file, name, dtype) for name in file.header.tensors}
    whole = reassemble(stored, component)
    renamed = component.key_map.rename(whole, file.header.path)
    tensors = {target: whole[source] for target, source in renamed.sources.items()}
    for target in component.offset_norms & tensors.keys():
        tensors[target] = _without_offset(tensors[target], 1.0)
    return tensors, renamed.unmapped


def _without_offset(tensor: torch.Tensor, offset: float) -> torch.Tensor:
    dense = tensor.dequantize(torch.float32) if isinstance(tensor, PackedTensor) else tensor
    return dense - offset
