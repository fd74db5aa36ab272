"""The inputs of a placement under all the names that they have had: one reading for every generation of workflows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from comfy_nodes.nodes._errors import ConflictingInputsError, InputValueError

MAX_TEXT: Final = 64 * 1024
"""Characters of a text that are read; ComfyUI checks inputs where every other request waits."""
MAX_DONORS: Final = 64
MAX_GIGABYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What the inputs of a placement say, whatever they are called in the workflow.

    Attributes:
        compute_device: where the model computes; None where nothing says so.
        virtual_ram_gb: how much leaves the compute device, in units of 1024**3 bytes; None where nothing says so.
        donors: who takes it, in order; None where nothing says so.
        expert: the allocation text; empty for none.
        eject_models: whether other models make room first; None where nothing says so.
    """

    compute_device: str | None = None
    virtual_ram_gb: float | None = None
    donors: tuple[str, ...] | None = None
    expert: str = ""
    eject_models: bool | None = None


Reader = Callable[[str, Any, "Context"], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What reading an input may depend on.

    Attributes:
        devices: names of the devices of this machine, accelerators first.
        compute_device: where the model computes, which is never its own donor; the first device unless said.
    """

    devices: Sequence[str]
    compute_device: str


def _text(name: str, value: Any, context: Context) -> str:
    if not isinstance(value, str):
        raise InputValueError(name, value, 'give a text, such as "cuda:0"')
    if len(value) > MAX_TEXT:
        raise InputValueError(name, value, f"give at most {MAX_TEXT} characters")
    return value.strip()


def _number(name: str, value: Any, context: Context) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputValueError(name, value, "give a number of gigabytes")
    if isinstance(value, int) and abs(value) > MAX_GIGABYTES:
        raise InputValueError(name, value, f"give at most {MAX_GIGABYTES}")
    return float(value)


def _switch(name: str, value: Any, context: Context) -> bool:
    if not isinstance(value, bool):
        raise InputValueError(name, value, "give true or false")
    return value


def _opposite(name: str, value: Any, context: Context) -> bool:
    return not _switch(name, value, context)


def _donors(name: str, value: Any, context: Context) -> tuple[str, ...]:
    """Donors as a text; a switch stands there in workflows that were saved before 2.0, when it was use_other_vram."""
    if isinstance(value, bool):
        return _other_memory(name, value, context)
    donors = tuple(part.strip() for part in _text(name, value, context).split(","))
    if len(donors) > MAX_DONORS:
        raise InputValueError(name, value, f"name at most {MAX_DONORS} devices")
    return donors


def _other_memory(name: str, value: Any, context: Context) -> tuple[str, ...]:
    return other_memory(context.devices, context.compute_device) if _switch(name, value, context) else ("cpu",)


def other_memory(devices: Sequence[str], compute_device: str) -> tuple[str, ...]:
    """The devices that do not compute, accelerators first and the cpu last; the cpu where there is no other.

    >>> other_memory(["cuda:0", "cuda:1", "cpu"], "cuda:0")
    ('cuda:1', 'cpu')
    """
    accelerators = [device for device in devices if device not in ("cpu", compute_device)]
    return (*accelerators, *(("cpu",) if compute_device != "cpu" or not accelerators else ()))


_READERS: Final[Mapping[str, tuple[str, Reader]]] = {
    "compute_device": ("compute_device", _text),
    "device": ("compute_device", _text),
    "virtual_ram_gb": ("virtual_ram_gb", _number),
    "virtual_vram_gb": ("virtual_ram_gb", _number),
    "donor_device": ("donors", _donors),
    "use_other_vram": ("donors", _other_memory),
    "expert_mode_allocations": ("expert", _text),
    "allocations": ("expert", _text),
    "eject_models": ("eject_models", _switch),
    "keep_loaded": ("eject_models", _opposite),
}
_MEANINGS: Final = {
    "compute_device": "where the model computes",
    "virtual_ram_gb": "how much of the model is moved",
    "donors": "which devices take it",
    "expert": "what lives where",
    "eject_models": "whether other models make room",
}
FIELD_OF: Final[Mapping[str, str]] = {name: field for name, (field, _) in _READERS.items()}
"""Every name that an input of a placement has had -> what it means, a field of `Controls`."""

IGNORED: Final = frozenset({"high_precision_loras"})
"""Names that mean nothing any more: LoRAs are always applied at full quality."""


def read_controls(inputs: Mapping[str, Any], devices: Sequence[str]) -> Controls:
    """Read the inputs of a placement, under any of their names.

    Args:
        inputs: inputs by name; those that are no input of a placement, and those that are None, are left alone.
        devices: names of the devices of this machine, accelerators first.

    Raises:
        ConflictingInputsError: two names of one input have different values.
        InputValueError: a value is of a kind that the input cannot have.

    >>> read_controls({"device": "cuda:0", "virtual_vram_gb": 4.0, "use_other_vram": True}, ["cuda:0", "cuda:1", "cpu"])
    ... # doctest: +NORMALIZE_WHITESPACE
    Controls(compute_device='cuda:0', virtual_ram_gb=4.0, donors=('cuda:1', 'cpu'), expert='', eject_models=None)
    """
    found: dict[str, tuple[str, Any]] = {}
    context = Context(devices=devices, compute_device=devices[0])
    for name in _READERS:  # those of the compute device first, which is never its own donor
        value = inputs.get(name)
        if value is None:
            continue
        field, reader = _READERS[name]
        read = reader(name, value, context)
        if field in found and found[field][1] != read:
            first = found[field][0]
            raise ConflictingInputsError(_MEANINGS[field], (first, inputs[first]), (name, value))
        found.setdefault(field, (name, read))
        if field == "compute_device":
            context = Context(devices=devices, compute_device=read)
    return Controls(**{field: read for field, (_, read) in found.items()})
