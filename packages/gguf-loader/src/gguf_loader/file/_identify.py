"""What a file is that was taken for something else: another kind of GGUF file, another format, a web page."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

Contents: TypeAlias = Literal["diffusion model", "text encoder", "vision part", "LoRA"]
"""What the tensors of a GGUF file make up. A vision part is what llama.cpp calls mmproj."""

REMEDIES: Mapping[Contents, str] = MappingProxyType(
    {
        "diffusion model": "choose it in a loader of diffusion models",
        "text encoder": "choose it in a loader of text encoders",
        "vision part": "choose the text encoder that it belongs to, which loads its vision part (mmproj) with it",
        "LoRA": "choose the model that it was made for, and apply the LoRA to it",
    }
)
"""What to do with a file that holds something else than was wanted."""

PATCH = "v.patch_embd.weight"
_TOKENS = "token_embd.weight"
_TEXT = re.compile(r"(?:text_model\.encoder\.layers|encoder\.block|model\.layers|(?:(?:enc|dec)\.)?blk)\.\d+\.")
_ORIGINAL = re.compile(r"(?:text_model\.encoder\.layers|encoder\.block|model\.layers)\.\d+\.")
_LORA = tuple(f".lora_{part}{end}" for part in ("a", "b", "A", "B", "up", "down") for end in ("", ".weight"))

_LFS = b"version https://git-lfs"
_OLDER = (b"GGML", b"ggml", b"lmgg", b"ggmf", b"fmgg", b"ggjt", b"tjgg")


def contents_of(names: Collection[str], kind: object) -> Contents:
    """What the tensors of a file make up.

    Args:
        names: of all tensors.
        kind: the value of `general.type`, which decides where converters write it; None where it is missing.

    >>> contents_of(["v.blk.0.attn_q.weight"], "mmproj"), contents_of(["double_blocks.0.img_attn.qkv.weight"], "model")
    ('vision part', 'diffusion model')
    """
    if kind == "adapter" or 2 * sum(name.endswith(_LORA) for name in names) > len(names):
        return "LoRA"
    if kind in ("mmproj", "clip-vision") or (PATCH in names and _TOKENS not in names):
        return "vision part"
    if _TOKENS in names or any(_TEXT.match(name) for name in names):
        return "text encoder"
    return "diffusion model"


def has_original_names(names: Collection[str]) -> bool:
    """Whether tensors have the names of an original text encoder rather than llama.cpp's."""
    return any(_ORIGINAL.match(name) for name in names)


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """What a file is whose first bytes are not GGUF's, and a remedy; None where nobody knows.

    >>> foreign_format(b"<!DOCTYPE html><html>")
    ('a web page', 'download the file itself, not the page that shows it')
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file", "download it again"
    if head.startswith(_LFS):
        return "a Git LFS pointer", "fetch the file that it points to with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page", "download the file itself, not the page that shows it"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "a safetensors file", "rename it to .safetensors and choose it in the loader of that format"
    if head.startswith((b"PK\3\4", b"\x80\2", b"\x80\4")):
        return "a PyTorch or zip file", "choose it in the loader of that format, or convert it"
    if head.startswith(_OLDER):
        return "a file of a format before GGUF", "convert the original checkpoint with a current converter"
    if text.startswith((b"{", b"[")):
        return "a JSON text", "choose the file with the weights"
    if not any(head):
        return "a file that starts with zeros, as an unfinished download does", "download it again"
    return None
