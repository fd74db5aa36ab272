"""What the blocks of a model are given, return and attend over in one forward: what a plan is derived from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ray_parallel.sequence.plan._binding import Signature
from ray_parallel.sequence.running._catch import OVERRIDE, Caught, SdpaMode, override
from ray_parallel.sequence.running._options import OPTIONS

Probe = Callable[[int], tuple[nn.Module, Mapping[str, Any]]]
"""probe(step) -> a model in fp32 with the same weights each time, and the keyword arguments of one forward. Numbers of
tokens change from step to step, those of different streams by different amounts."""

Path = tuple[str | int, ...]
Form = tuple[str, Any]
"""What is known of a value: ("tensor", shape), ("int", value), ("frames", (frames, tokens a frame)), of a list or tuple
("many", length), of anything else ("other", class)."""


@dataclass(slots=True)
class Seen:
    """One block list in one forward.

    Attributes:
        arguments: argument and place in it -> the forms it had in the blocks.
        results: place in the result -> its forms.
        attention: module inside the block -> (queries, keys) of its attention calls.
    """

    arguments: dict[Path, set[Form]] = field(default_factory=dict)
    results: dict[Path, set[Form]] = field(default_factory=dict)
    attention: dict[str, set[tuple[int, int]]] = field(default_factory=dict)


@dataclass(slots=True)
class Trace:
    """One forward: its block lists, and the order in which their blocks ran."""

    lists: dict[str, Seen]
    order: list[str] = field(default_factory=list)


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules of one class."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and len({type(block) for block in module}) == 1:
            found[name] = module
    return found


def trace(model: nn.Module, arguments: Mapping[str, Any]) -> Trace:
    """Run the model once and note what passes through its blocks."""
    lists = block_lists(model)
    seen = Trace({name: Seen() for name in lists})
    running: list[tuple[str, str]] = []

    def attend(caught: Caught) -> None:
        if running:
            name, path = running[-1]
            calls = seen.lists[name].attention.setdefault(path, set())
            calls.add((caught.q.shape[1], caught.k.shape[1]))

    with ExitStack() as undo, torch.no_grad():
        for name, blocks in lists.items():
            for block in blocks:
                for handle in _watch(seen, running, name, block):
                    undo.callback(handle.remove)
        undo.enter_context(SdpaMode(attend))
        arguments = dict(arguments)
        if Signature(model).takes(OPTIONS):
            options = arguments.get(OPTIONS) or {}
            arguments[OPTIONS] = {**options, OVERRIDE: override(attend, options.get(OVERRIDE))}
        model(**arguments)
    return seen


def _watch(seen: Trace, running: list[tuple[str, str]], name: str, block: nn.Module) -> Iterator[Any]:
    signature, facts = Signature(block), seen.lists[name]

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.order.append(name)
        given = signature.bind(args, kwargs).given()
        for argument, value in given.items():
            if argument != OPTIONS:
                for path, form in _forms(value, (argument,)):
                    facts.arguments.setdefault(path, set()).add(form)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        for path, form in _forms(out, ()):
            facts.results.setdefault(path, set()).add(form)

    yield block.register_forward_pre_hook(enter, with_kwargs=True)
    yield block.register_forward_hook(leave)
    for path, module in block.named_modules():

        def push(module: nn.Module, args: Any, path: str = path) -> None:
            running.append((name, path))

        def pop(module: nn.Module, args: Any, out: Any) -> None:
            running.pop()

        yield module.register_forward_pre_hook(push)
        yield module.register_forward_hook(pop)


def _forms(value: Any, path: Path) -> Iterator[tuple[Path, Form]]:
    if isinstance(value, Tensor):
        yield path, ("tensor", tuple(value.shape))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, ("int", value)
    elif isinstance(value, list | tuple):
        yield path, ("many", len(value))
        for place, part in enumerate(value):
            yield from _forms(part, (*path, place))
    elif hasattr(value, "patches_per_frame"):
        yield path, ("frames", (value.num_frames, value.patches_per_frame))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _forms(part, (*path, str(key)))
    elif value is not None:
        yield path, ("other", type(value).__name__)
