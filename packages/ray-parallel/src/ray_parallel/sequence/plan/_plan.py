"""What a plan can say: pure data, no tensor, no process group, JSON both ways.

A plan says how one architecture runs on several ranks without touching its code: which lists of blocks form a region
whose token streams stay cut, what each argument of a block is with respect to those streams, which modules inside
attend over which streams, and where the streams are put together again. Everything a block takes is listed, as cut
(`Region.args`) or as whole (`Region.whole`): a block that is given anything else is refused.

Examples:
    >>> wan = Plan(regions=[Region(
    ...     blocks="blocks",
    ...     args={"x": Seq("video"), "freqs": Seq("video"), "e": Rows("video", ndim=4)},
    ...     whole=("context", "context_img_len"),
    ...     out=Seq("video"),
    ...     attn={"self_attn": Attn("video", "video"), "cross_attn": Attn("video")},
    ...     exit=("head", "x"),
    ... )])
    >>> Plan.from_json(wan.to_json()) == wan
    True
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from block_discovery import parse_json
from ray_parallel.sequence.plan._errors import PlanError

Streams = tuple[str, ...]


def _names(value: str | Sequence[str]) -> Streams:
    """One name, or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, slots=True)
class Seq:
    """Dimension `dim` of the tensor runs over the concatenation of `streams`; size 1 there means "for all tokens"."""

    streams: Any
    dim: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _named(self))


@dataclass(frozen=True, slots=True)
class Rows:
    """One row for all tokens, one a group of tokens (a frame), or one a token, in dimension `dim`.

    Attributes:
        streams: the concatenation that the rows describe.
        dim: the dimension of the rows.
        ndim: the tensor is cut only when it has this many dimensions; 0: always.
    """

    streams: Any
    dim: int = 1
    ndim: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _named(self))


@dataclass(frozen=True, slots=True)
class Grid:
    """Hidden states that keep their grid, [B, T, H, W, C]: dimension `dim` counts frames of prod(`inner`) tokens.

    They are cut between frames; those of a single frame, an image, between its lines.
    """

    streams: Any
    dim: int = 1
    inner: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _named(self))
        object.__setattr__(self, "inner", tuple(self.inner))
        _one(self)


@dataclass(frozen=True, slots=True)
class Compressed:
    """An object that keeps one row a frame for tokens that share it, and expands them itself.

    It has `data` [B, frames, F], `num_frames`, `patches_per_frame`, `batch_size` and `feature_dim`; a plain tensor in
    its place is treated as `Rows`.
    """

    streams: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _named(self))
        _one(self)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Token positions as Python numbers: a count of leading tokens, or a list of (start, end, ...)."""

    streams: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _named(self))


@dataclass(frozen=True, slots=True)
class Opaque:
    """A mask object that needs the whole sequence: it is handed over after the exchange.

    Attributes:
        kernel: name of the function that applies it, one of the `kernels` given to `parallelize`.
    """

    kernel: str


Leaf = Seq | Rows | Grid | Compressed | Ranges | Opaque
Spec = Any
"""A `Leaf`, None ("leave it alone"), or a tuple of specs for a tuple or list of values."""

_LEAVES: dict[str, type[Any]] = {kind.__name__: kind for kind in (Seq, Rows, Grid, Compressed, Ranges, Opaque)}


@dataclass(frozen=True, slots=True)
class Attn:
    """Over which streams a module attends.

    `Attn("v", "v")` exchanges; `Attn("v")` has its keys whole on every rank and runs locally; `Attn((), "v")` has
    whole queries over cut keys.

    Attributes:
        q: streams of the queries.
        kv: streams of the keys and values.
        other: for a module that attends in two ways, the other one; the lengths of queries and keys tell them apart.
    """

    q: Any = ()
    kv: Any = ()
    other: Attn | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", _names(self.q))
        object.__setattr__(self, "kv", _names(self.kv))

    def ways(self) -> Iterator[Attn]:
        """This rule and the other ones of the module."""
        yield self
        if self.other is not None:
            yield from self.other.ways()

    def streams(self) -> set[str]:
        """Every stream that the module attends over, in any of its ways."""
        return {name for way in self.ways() for name in (*way.q, *way.kv)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Residuals that the model adds after each block, as a ControlNet gives them: one list of whole tensors a key.

    Attributes:
        key: the model is called with `control[key]`, one tensor or None for each block.
        blocks: the block list after whose i-th block the i-th one is added.
        stream: the stream of the hidden state that they are added to, from its first token on.
        out: place of that hidden state in the result of the block; None: the result itself.
        after: streams of earlier regions that precede in `stream`; the residuals start behind them.
    """

    key: str
    blocks: str
    stream: str
    out: int | None = None
    after: Any = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "after", _names(self.after))


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Blocks through which the token streams stay cut.

    Attributes:
        blocks: names of the module lists, in the order they run (or interleaved); a plain module counts as a list.
        args: argument of the block's forward -> its relation to the streams.
        whole: arguments that every block takes whole.
        out: what a block returns.
        attn: module inside a block ("": the block itself) -> over which streams it attends.
        exit: where the streams are put together: "last", after the last block of the last list; the name of a list,
            after the last block of that one; or (module, argument), before that module of the model runs.
        scope: "list" stays cut from block to block; "block" puts together after every block, for models that work on
            the hidden state between blocks.
    """

    blocks: Any
    args: Mapping[str, Spec]
    out: Spec
    attn: Mapping[str, Attn]
    whole: Any = ()
    exit: str | tuple[str, str] = "last"
    scope: Literal["list", "block"] = "list"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", _names(self.blocks))
        object.__setattr__(self, "whole", _names(self.whole))
        object.__setattr__(self, "args", {name: _spec(value) for name, value in self.args.items()})
        object.__setattr__(self, "out", _spec(self.out))
        object.__setattr__(self, "attn", dict(self.attn))
        if not isinstance(self.exit, str):
            object.__setattr__(self, "exit", tuple(self.exit))
        both = sorted(set(self.args) & set(self.whole))
        if not self.blocks:
            raise PlanError("a region has no blocks; name at least one module list of the model")
        if both:
            raise PlanError(f"{', '.join(both)} is both cut and whole; list it once")
        if self.scope not in ("list", "block"):
            raise PlanError(f"scope {self.scope!r} is unknown; use 'list' or 'block'")
        if isinstance(self.exit, tuple) and isinstance(self.out, tuple):
            raise PlanError("an exit before a module joins one tensor, but the blocks return several; use a list's end")
        for leaf in leaves(self.out):
            if not isinstance(leaf, Seq | Grid):
                raise PlanError(f"a block cannot return {leaf}; results are Seq or Grid")
        if not any(isinstance(leaf, Seq | Grid) for spec in self.args.values() for leaf in leaves(spec)):
            raise PlanError(f"no argument of {', '.join(self.blocks)} is a Seq or a Grid, so no stream has a length")
        known = {name for spec in self.args.values() for leaf in leaves(spec) for name in _streams(leaf)}
        used = {name for leaf in leaves(self.out) for name in _streams(leaf)}
        used |= {name for rule in self.attn.values() for name in rule.streams()}
        if used - known:
            unknown = ", ".join(sorted(used - known))
            raise PlanError(f"{unknown}: no argument of {', '.join(self.blocks)} runs over such a stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one architecture runs on several ranks.

    Attributes:
        regions: the cut parts, none inside another.
        control: residuals added between blocks.
        patches: host patches that run between blocks -> the entries of their dictionary that are cut. They are run on
            whole tensors. Patches that are not listed are refused; an empty mapping lets one through unchanged, for a
            patch that runs where nothing is cut.
        inputs: arguments of the model, lists of tensors that it adds between the blocks by itself -> what their
            tensors are. They are cut while a region with those streams is open.
    """

    regions: Any
    control: Any = ()
    patches: Mapping[str, Mapping[str, Spec]] = field(default_factory=dict)
    inputs: Mapping[str, Seq] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        object.__setattr__(self, "control", tuple(self.control))
        patches = {name: {key: _spec(spec) for key, spec in entry.items()} for name, entry in self.patches.items()}
        object.__setattr__(self, "patches", patches)
        object.__setattr__(self, "inputs", dict(self.inputs))
        if not self.regions:
            raise PlanError("a plan needs at least one region")
        lists = [name for region in self.regions for name in region.blocks]
        if len(set(lists)) < len(lists):
            raise PlanError(f"a block list belongs to one region only, got {', '.join(lists)}")
        known = {
            name
            for region in self.regions
            for spec in region.args.values()
            for leaf in leaves(spec)
            for name in _streams(leaf)
        }
        used = {name for spec in self.inputs.values() for name in _streams(spec)}
        used |= {name for entry in self.control for name in (entry.stream, *entry.after)}
        if used - known:
            raise PlanError(f"{', '.join(sorted(used - known))}: no region has such a stream")

    def to_json(self) -> str:
        """The plan as JSON; equal plans give equal text."""
        return json.dumps(_dump(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is not a plan.
        """
        try:
            data = parse_json(text)
            return cls(
                regions=[_region(entry) for entry in data["regions"]],
                control=[Control(**entry) for entry in data["control"]],
                patches={
                    name: {key: _load(spec) for key, spec in entry.items()} for name, entry in data["patches"].items()
                },
                inputs={name: _load(spec) for name, spec in data["inputs"].items()},
            )
        except PlanError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"this is not a plan in JSON ({error!r}); write one with Plan.to_json") from error

    def digest(self) -> str:
        """SHA-256 of the JSON, hexadecimal: what the ranks compare before they run."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def leaves(spec: Spec) -> Iterator[Leaf]:
    """Every leaf of a spec, in order."""
    if isinstance(spec, tuple):
        for part in spec:
            yield from leaves(part)
    elif spec is not None:
        yield spec


def _streams(leaf: Leaf) -> Streams:
    streams: Streams = () if isinstance(leaf, Opaque) else leaf.streams
    return streams


def _named(leaf: Any) -> Streams:
    streams = _names(leaf.streams)
    if not streams or not all(isinstance(name, str) and name for name in streams):
        raise PlanError(f"{type(leaf).__name__} needs the names of its streams, got {leaf.streams!r}")
    if type(dim := getattr(leaf, "dim", 0)) is not int:
        raise PlanError(f"{type(leaf).__name__} needs the number of a dimension, got {dim!r}")
    return streams


def _one(leaf: Any) -> None:
    if len(leaf.streams) != 1:
        raise PlanError(f"{type(leaf).__name__} describes one stream, got {', '.join(leaf.streams)}")


def _spec(value: Any) -> Spec:
    if value is None or isinstance(value, Leaf):
        return value
    if isinstance(value, tuple | list):
        return tuple(_spec(part) for part in value)
    raise PlanError(
        f"{value!r} describes no argument; use Seq, Rows, Grid, Compressed, Ranges, Opaque, None or a tuple"
    )


def _dump(value: Any) -> Any:
    if isinstance(value, Leaf):
        return {"kind": type(value).__name__} | {
            entry.name: _dump(getattr(value, entry.name)) for entry in fields(value)
        }
    if isinstance(value, Plan | Region | Attn | Control):
        return {entry.name: _dump(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: _dump(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_dump(part) for part in value]
    return value


def _load(value: Any) -> Spec:
    if isinstance(value, list):
        return tuple(_load(part) for part in value)
    if value is None:
        return None
    arguments = dict(value)
    return _LEAVES[arguments.pop("kind")](**arguments)


def _region(data: Mapping[str, Any]) -> Region:
    rest = {name: value for name, value in data.items() if name not in ("args", "out", "attn")}
    return Region(
        args={name: _load(spec) for name, spec in data["args"].items()},
        out=_load(data["out"]),
        attn={name: _attn(rule) for name, rule in data["attn"].items()},
        **rest,
    )


def _attn(data: Mapping[str, Any]) -> Attn:
    other = data.get("other")
    return Attn(**{**data, "other": None if other is None else _attn(other)})
