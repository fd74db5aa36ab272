"""Which vision projector (mmproj file) belongs to a text encoder.

They are two files with two names, and a folder of text encoders holds many of both. A pair is taken only where there is
one answer: the file that the caller names; else the one whose name says the same model; else the only one in the folder
that says it is a projector and fits. A projector that could belong to another model is never taken silently.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from gguf_loader._errors import GgufError, GgufPairingError, quoted
from gguf_loader.file._header import GgufHeader, read_header

from ._components import TextComponent
from ._vision import projector_type

_LOG = logging.getLogger(__name__)

# What file names say of the numbers in a file or of its purpose, not of the model: UD-Q4_K_XL, i1-IQ3_XXS, mmproj.
_NOT_THE_MODEL = re.compile(
    r"(?<![a-z0-9])(?:ud|i1|i?q\d(?:_(?:k|nl|xxs|xs|s|m|l|xl|[01]))*|tq[12]_0|mxfp4(?:_moe)?|nvfp4|b?f16|fp16|f32|fp32"
    r"|mmproj|model|text|encoder)(?![a-z0-9])"
)
_SEPARATORS = re.compile(r"[-_. ]+")


def find_mmproj(
    header: GgufHeader, component: TextComponent, explicit: str | PathLike[str] | None = None
) -> GgufHeader | None:
    """The header of the vision projector that belongs to a text encoder; None where the folder has none.

    Args:
        header: of the text encoder.
        component: its kind, which decides which projectors fit.
        explicit: the file that the caller wants, which must fit.

    Raises:
        GgufPairingError: the explicit file is no projector or does not fit, or several files fit.
        GgufError: the explicit file cannot be read.
    """
    if explicit is not None:
        projector = read_header(explicit)
        misfit = _misfit(projector, header, component)
        if misfit:
            raise GgufPairingError(misfit, path=projector.path, remedy=f"name the mmproj file made for {header.path}")
        return projector
    if not component.projectors:
        return None
    folder = Path(header.path).parent
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and str(path) != header.path)
    model = model_name(header.path)
    named = [path for path in others if "mmproj" in path.stem.lower() and model_name(path) == model]
    by_name = _fitting(named, header, component)
    if by_name:
        return _only(by_name, header, "have its name")
    unnamed = [path for path in others if "mmproj" not in path.stem.lower() or not model_name(path)]
    return _only(_fitting(unnamed, header, component), header, "say that they are projectors for it")


def model_name(path: str | PathLike[str]) -> str:
    """What a file name says of the model, without what it says of quantisation and purpose.

    >>> model_name("Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf") == model_name("mmproj-qwen2.5_vl-7b-Instruct-BF16.gguf")
    True
    >>> model_name("mmproj-F16.gguf")
    ''
    """
    words = _SEPARATORS.split(_NOT_THE_MODEL.sub("", Path(path).stem.lower()))
    return "".join(words)


def is_projector(header: GgufHeader) -> bool:
    """Whether a file holds a vision tower: by `general.type`, or by its tensors where that is missing."""
    return header.contents == "vision part"


def _misfit(projector: GgufHeader, text: GgufHeader, component: TextComponent) -> str | None:
    if not is_projector(projector):
        return "not a vision projector"
    kind = projector_type(projector)
    if kind not in component.projectors:
        return f"a projector of type {quoted(kind)}, which does not belong to {component.name}"
    width = projector.metadata.get("clip.vision.projection_dim")
    expected = text.metadata.get(f"{text.architecture}.embedding_length")
    if width is not None and expected is not None and width != expected:
        return f"projects to {width} features, where the text encoder has {expected}"
    return None


def _fitting(paths: Iterable[Path], text: GgufHeader, component: TextComponent) -> list[GgufHeader]:
    fitting = []
    for path in paths:
        try:
            header = read_header(path)
            misfit = _misfit(header, text, component)
        except (GgufError, OSError) as error:
            _LOG.warning("not considered as a vision projector: %s", error)
            continue
        if misfit is None:
            fitting.append(header)
    return fitting


def _only(found: list[GgufHeader], text: GgufHeader, how: str) -> GgufHeader | None:
    if len(found) > 1:
        names = ", ".join(Path(header.path).name for header in found)
        raise GgufPairingError(
            f"{len(found)} vision projectors {how}: {names}",
            path=text.path,
            remedy="pass the one that you mean as mmproj=, or mmproj=None for the text alone",
        )
    return found[0] if found else None
