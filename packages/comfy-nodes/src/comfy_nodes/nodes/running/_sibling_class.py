"""Node classes for nodes of other packs: their own inputs and outputs with a choice of device, by composition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from comfy_nodes import host
from comfy_nodes.host.app import interface, other_packs
from comfy_nodes.nodes._errors import SiblingError
from comfy_nodes.nodes.running._choices import options
from comfy_nodes.nodes.running._output import node_output
from comfy_nodes.nodes.running._schema import input_of, output_of, schema
from comfy_nodes.nodes.table._siblings import DEVICE_TYPE, SiblingNode
from comfy_nodes.nodes.table._widgets import Devices, Output, Widget, combo, link

Described = tuple[str, Any, bool]
"""An input of another pack: its name, what the pack says about it, and whether it is optional."""


def sibling_class(node: SiblingNode) -> type:
    """The host's class of a node of another pack, with our device.

    Raises:
        Exception: whatever that pack's own code raises when it is asked for its inputs.
    """
    base = interface.registered_nodes()[node.base]
    order = [name for name, _, _ in own_inputs(node, base.INPUT_TYPES())]

    def define_schema(cls: type, /) -> Any:
        return _schema(node, base)

    def execute(cls: Any, /, **inputs: Any) -> Any:
        return _run(node, base, order, inputs, cls.hidden)

    members = {
        "__module__": __name__,
        "__doc__": f"{node.base} of {node.pack}, on the device of your choice.",
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    if hasattr(base, "VALIDATE_INPUTS"):
        members["validate_inputs"] = classmethod(_check_of(base))
    return type(node.node_id, (interface.comfy_api().io.ComfyNode,), members)


def _check_of(base: Any) -> Callable[..., Any]:
    """What a pack itself says about values before a node runs; the host looks at its signature for what it wants."""

    def validate_inputs(_cls: type, /, **given: Any) -> Any:
        return base.VALIDATE_INPUTS(**given)

    validate_inputs.__signature__ = inspect.signature(base.VALIDATE_INPUTS.__func__)  # type: ignore[attr-defined]
    return validate_inputs


def own_inputs(node: SiblingNode, described: Mapping[str, Mapping[str, Any]]) -> list[Described]:
    """The pack's inputs that our node shows, in the pack's order."""
    replaced = {*node.hides, node.device, node.offload}
    return [
        (name, spec, group == "optional")
        for group in ("required", "optional")
        for name, spec in described.get(group, {}).items()
        if name not in replaced
    ]


def added_widgets(node: SiblingNode) -> list[Widget]:
    """The inputs that we add."""
    if node.way == "socket":
        tooltip = f"Where {node.base} runs: the device of the loader before it, or of Select Device."
        return [link(node.device, DEVICE_TYPE, tooltip, optional=not node.required)]
    what = "Where swapped blocks go." if node.swaps else f"Where {node.base} runs."
    default = "cpu" if node.swaps else None
    widgets = [combo(node.device, Devices(), what, default=default, optional=not node.required)]
    if node.offload:
        tooltip = "Where the model goes when it is not used."
        widgets.append(combo(node.offload, Devices(), tooltip, default="cpu", optional=True))
    return widgets


def _schema(node: SiblingNode, base: Any) -> Any:
    io = interface.comfy_api().io
    described = base.INPUT_TYPES()
    inputs = [_as_input(io, *described_input) for described_input in own_inputs(node, described)]
    names = [each.id for each in inputs]
    if node.after is None or (node.after and node.after not in names):
        position = len(inputs)
    else:
        position = names.index(node.after) + 1 if node.after else 0
    inputs[position:position] = [input_of(widget) for widget in added_widgets(node)]
    # Node ids of a host come in two kinds of class; an older one may have none of the optional attributes.
    names_out = list(getattr(base, "RETURN_NAMES", None) or base.RETURN_TYPES)
    lists_out = list(getattr(base, "OUTPUT_IS_LIST", None) or [False] * len(base.RETURN_TYPES))
    outputs = [
        io.Custom(kind).Output(display_name=name, is_output_list=is_list)
        for kind, name, is_list in zip(base.RETURN_TYPES, names_out, lists_out, strict=True)
    ]
    if node.emits_device:
        outputs.append(
            output_of(Output(io_type=DEVICE_TYPE, name=node.device, tooltip="The device, for what follows."))
        )
    return schema(
        node_id=node.node_id,
        display_name=f"{node.base} (MultiGPU)",
        category=node.category,
        description=f"{node.base} of {node.pack}, on the device of your choice.",
        inputs=inputs,
        outputs=outputs,
        hidden=[io.Hidden(kind if isinstance(kind, str) else kind[0]) for kind in described.get("hidden", {}).values()],
        is_output_node=bool(getattr(base, "OUTPUT_NODE", False)),
        is_input_list=bool(getattr(base, "INPUT_IS_LIST", False)),
    )


def _as_input(io: Any, name: str, spec: Any, optional: bool) -> Any:
    """What a pack says about an input, for a class of the new kind."""
    kind, said = spec[0], dict(spec[1]) if len(spec) > 1 else {}
    tooltip = said.pop("tooltip", None)
    if isinstance(kind, str) and kind != "COMBO":
        return io.Custom(kind).Input(name, optional=optional, tooltip=tooltip, extra_dict=said)
    choices = list(said.pop("options", ()) if isinstance(kind, str) else kind)
    # Combos of older hosts take nothing besides what they know; of what a pack says, the default matters.
    known = inspect.signature(io.Combo.Input).parameters
    more = {"extra_dict": said} if "extra_dict" in known else {"default": said.get("default")}
    return io.Combo.Input(name, options=choices, optional=optional, tooltip=tooltip, **more)


def _run(node: SiblingNode, base: Any, order: list[str], inputs: Mapping[str, Any], hidden: Any) -> Any:
    device = inputs.get(node.device) or ("cpu" if node.swaps else options(Devices())[0])
    _check_device(node, node.device, device)
    described = base.INPUT_TYPES()
    given = {name: inputs[name] for name in order if name in inputs} | _hidden_inputs(described, hidden)
    given |= _replaced(node, described, device)
    call = getattr(base(), base.FUNCTION)
    if node.swaps:
        values, shown = _unpacked(call(**given))
        return node_output({**values[0], node.device: device}, *values[1:], shown=shown)
    offload = inputs.get(node.offload) if node.offload else None
    model = given.get("model") if node.follows_swap else None
    offload = offload or _swap_device(model)
    with _swapping(model, offload), other_packs.running_on(device, inspect.getmodule(base), offload=offload):
        values, shown = _unpacked(call(**given))
    return node_output(*values, *((device,) if node.emits_device else ()), shown=shown)


def _check_device(node: SiblingNode, name: str, device: Any) -> None:
    there = host.device_names()
    if device not in there:
        raise SiblingError(f"{node.node_id}: {name} = {device!r} is not on this machine, which has {', '.join(there)}")


def _hidden_inputs(described: Mapping[str, Any], hidden: Any) -> dict[str, Any]:
    kinds = interface.comfy_api().io.Hidden
    return {
        name: getattr(hidden, kinds(kind if isinstance(kind, str) else kind[0]).name, None)
        for name, kind in described.get("hidden", {}).items()
    }


def _replaced(node: SiblingNode, described: Mapping[str, Mapping[str, Any]], device: str) -> dict[str, str]:
    """Values of the pack's inputs that our device stands for: the main device, which is the one we choose."""
    theirs = {**described.get("required", {}), **described.get("optional", {})}
    values = {}
    for name in node.hides:
        choices = theirs[name][0] if name in theirs else ()
        if "main_device" in choices:
            values[name] = "main_device"
        elif "gpu" in choices:
            values[name] = "cpu" if device == "cpu" else "gpu"
    return values


def _unpacked(result: Any) -> tuple[tuple[Any, ...], Mapping[str, Any] | None]:
    """Outputs of a node of either kind, and what it shows."""
    if isinstance(result, Mapping):
        return tuple(result.get("result", ())), result.get("ui")
    if isinstance(result, tuple):
        return result, None
    shown = result.ui
    return tuple(result.args), shown if shown is None or isinstance(shown, Mapping) else shown.as_dict()


def _swap_device(model: Any) -> str | None:
    """Where the settings of a model send its swapped blocks; None where they do not say."""
    settings = getattr(model, "model_options", {}).get("transformer_options", {}).get("block_swap_args") or {}
    device: str | None = settings.get("swap_device")
    return device


@contextmanager
def _swapping(model: Any, offload: str | None) -> Iterator[None]:
    """Have a model swap its blocks to a device for as long as the context lasts."""
    transformer = getattr(getattr(model, "model", None), "diffusion_model", None)
    names = [name for name in ("offload_device", "cache_device") if offload is not None and hasattr(transformer, name)]
    before = {name: getattr(transformer, name) for name in names}
    try:
        for name in names:
            setattr(transformer, name, torch.device(str(offload)))
        yield
    finally:
        for name, value in before.items():
            setattr(transformer, name, value)
