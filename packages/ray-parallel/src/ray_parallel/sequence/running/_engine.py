"""A plan on an unmodified model: hooks cut what a block takes, attention is caught, the streams are joined again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial, update_wrapper
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ray_parallel.sequence.plan._binding import Signature
from ray_parallel.sequence.plan._compiled import uncompiled, without_compiler
from ray_parallel.sequence.plan._errors import ClosedWorldError, PlanError
from ray_parallel.sequence.plan._fit import blocks_of, check_fit, submodule
from ray_parallel.sequence.plan._kernels import MaskKernel
from ray_parallel.sequence.plan._plan import Attn, Control, Grid, Plan, Region, Seq, Spec, leaves
from ray_parallel.sequence.ranks._layout import Layout
from ray_parallel.sequence.ranks._preflight import preflight
from ray_parallel.sequence.running._attention import Mesh
from ray_parallel.sequence.running._catch import Caught, SdpaMode
from ray_parallel.sequence.running._options import OPTIONS, Patch, prepare
from ray_parallel.sequence.running._rules import Forward, Frame, UncutAttentionError, run_rule
from ray_parallel.sequence.running._values import cut, layout_of, put_together, settled


class Parallel:
    """A model under a plan. Leaving the with-block, or `remove`, takes everything off again.

    The plan acts while the model's own forward runs, in the thread that runs it. It ends however the forward ends: an
    interrupt that is no `Exception` leaves nothing behind in the thread either.

    Attributes:
        model: the model.
        plan: its plan.
        mesh: the ranks; `mesh.sent_bytes` counts what was sent.
        trial_bytes: what of it the trial at the first call sent.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        mesh: Mesh,
        *,
        kernels: Mapping[str, MaskKernel],
        whole: Collection[str],
        check_ranks: bool,
        only_in_calls: bool = False,
        trial: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None,
    ) -> None:
        self.model = without_compiler(model)
        self.plan = plan
        self.mesh = mesh
        self._kernels = kernels
        self._whole = frozenset(whole)
        self._check_ranks = check_ranks
        self._only_in_calls = only_in_calls
        self._calling = False
        self._installed = False
        self._trial = trial
        self.trial_bytes = 0
        self._digest = plan.digest()
        self._signature = Signature(model)
        self._undo = ExitStack()
        self._forward: Forward | None = None
        check_fit(self.model, plan, kernels)
        try:
            self._undo.enter_context(uncompiled(model))
            self._install()
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Parallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model under the plan; with `only_in_calls` the plan acts nowhere else.

        Every rank calls it with the same arguments, and gets what the model returns.

        Raises:
            PlanError: the plan was removed, or such a call is running already.
        """
        if not self._installed or self._calling:
            state = "is running already" if self._calling else "was removed from it"
            raise PlanError(
                f"the plan of this {type(self.model).__name__} {state}; call parallelize for another handle"
            )
        self._calling = True
        try:
            return self.model(*args, **kwargs)
        finally:
            self._calling = False

    def remove(self) -> None:
        """Take everything off the model; a second time does nothing."""
        self._undo.close()

    def _install(self) -> None:
        self._wrap_forward()
        for region in self.plan.regions:
            for name in region.blocks:
                blocks = blocks_of(self.model, name)
                for place, block in enumerate(blocks):
                    ends = region.scope == "block" or (place == len(blocks) - 1 and name == _last_list(region))
                    self._install_block(region, name, place, block, ends)
            if isinstance(region.exit, tuple):
                module = self._hooked(self.model.get_submodule(region.exit[0]))
                self._before(module, self._exit_before(region, Signature(module)))

    def _wrap_forward(self) -> None:
        """Not hooks: torch skips even those that are always called when a forward ends with no `Exception`."""
        attributes = self.model.__dict__
        earlier = {"forward": attributes["forward"]} if "forward" in attributes else {}
        guard = update_wrapper(partial(self._run, self.model.forward), self.model.forward)

        def put_back() -> None:
            self._installed = False
            if attributes.get("forward") is guard:  # else somebody wrapped it since, and it passes from now on
                del attributes["forward"]
                attributes.update(earlier)

        self._undo.callback(put_back)
        attributes["forward"] = guard
        self._installed = True

    def _hooked(self, module: nn.Module) -> nn.Module:
        """The module that hooks are set on: without the wrapper of torch.compile, and uncompiled."""
        self._undo.enter_context(uncompiled(module))
        return without_compiler(module)

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._undo.callback(module.register_forward_hook(hook).remove)

    def _install_block(self, region: Region, name: str, place: int, block: nn.Module, ends: bool) -> None:
        block = self._hooked(block)
        where = f"{name}.{place}"
        self._before(block, self._enter(region, where, Signature(block)))
        for control in self.plan.control:
            if control.blocks == name:
                self._after(block, self._add_control(control, place))
        self._after(block, self._leave(region, ends))
        for path, rule in region.attn.items():
            inner = submodule(block, path) if path else None
            if inner is not None:
                inner = self._hooked(inner)
                self._before(inner, self._push(f"{where}.{path}", rule))
                self._after(inner, self._pop)

    def _run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model's forward, under the plan where that acts."""
        if not self._installed or (self._only_in_calls and not self._calling):
            return forward(*args, **kwargs)
        outer = self._forward
        try:
            self._forward, args, kwargs = self._prepare(self.model, args, kwargs)
            with SdpaMode(self._attend):
                out = forward(*args, **kwargs)
            self._require_joined(self._forward)
            return out
        finally:
            self._forward = outer

    def _prepare(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Forward, tuple[Any, ...], dict[str, Any]]:
        """What is true while the model runs once, and the arguments that it is called with."""
        if getattr(model, "is_cache_enabled", False):  # diffusers' caches compare what a block takes from step to step
            raise PlanError("a cache skips blocks by the tokens of one rank; call disable_cache() on the model first")
        bound = self._signature.bind(args, kwargs)
        given = bound.given()
        if self._check_ranks:
            preflight(self.mesh.world, self._digest, self.mesh.kind, sorted(self._whole), self.mesh.shares, given)
        if self._trial is not None:
            before = self.mesh.sent_bytes
            self._trial(args, kwargs)
            self._trial = None
            self.trial_bytes = self.mesh.sent_bytes - before
        forward = Forward()
        if OPTIONS in given or self._signature.takes(OPTIONS):
            options, earlier = prepare(given.get(OPTIONS) or {}, self.plan, self._attend, self._on_whole)
            forward.plain = earlier is None
            bound.replace(OPTIONS, options)
        if not forward.plain and self.mesh.kind != "ulysses":
            raise PlanError(
                f"another attention override is installed, and {self.mesh.kind!r} shows it parts of a sequence only; "
                "use kind 'ulysses', which calls it for whole sequences, or remove it"
            )
        control = given.get("control")
        if isinstance(control, Mapping):
            forward.control = {key: control[key] for key in control}
            self._check_control(model, forward.control)
            ours = {entry.key for entry in self.plan.control}
            bound.replace("control", {key: [] if key in ours else entry for key, entry in control.items()})
        for name, spec in self.plan.inputs.items():
            if name in given:
                listed = list(given[name])
                forward.inputs.append((listed, tuple(listed), spec))
                bound.replace(name, listed)
        return (forward, *bound.call())

    @staticmethod
    def _require_joined(forward: Forward) -> None:
        if forward.region is not None:
            lists = ", ".join(forward.region.blocks)
            raise PlanError(
                f"the streams of {lists} were never joined: the exit {forward.region.exit!r} was not reached; was its "
                "block skipped? Use scope 'block' for patches that skip blocks"
            )

    def _enter(self, region: Region, where: str, signature: Signature) -> Callable[..., Any]:
        known = {*region.args, *region.whole, OPTIONS}

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            forward = self._forward
            if forward is None:
                return None
            bound = signature.bind(args, kwargs)
            given = bound.given()
            unknown = [name for name, value in given.items() if name not in known and not _is_empty(value)]
            if unknown:
                raise ClosedWorldError(f"{type(block).__name__} ({where})", unknown)
            if forward.region is not region:
                self._open(forward, region, given, where)
            assert forward.layout is not None and forward.settled is not None
            for name, spec in forward.settled.args.items():
                if name in given:
                    bound.replace(name, self._cut_argument(forward, name, given[name], spec, forward.layout))
            forward.frames.append(Frame(where, region.attn.get("")))
            return bound.call()

        return hook

    def _open(self, forward: Forward, region: Region, given: Mapping[str, Any], where: str) -> None:
        if forward.region is not None:
            raise PlanError(f"{where} starts a region before that of {', '.join(forward.region.blocks)} has ended")
        world = self.mesh.world
        forward.settled = settled(region, given)
        forward.layout = layout_of(
            forward.settled, given, ranks=world.size, rank=world.rank, whole=self._whole, shares=self.mesh.shares
        )
        forward.lengths.update(forward.layout.lengths)
        forward.region = region
        for listed, whole, spec in forward.inputs:
            if set(spec.streams) <= set(forward.layout.lengths):
                listed[:] = [cut(value, spec, forward.layout) for value in whole]

    @staticmethod
    def _shut(forward: Forward) -> None:
        forward.region, forward.settled, forward.cuts = None, None, {}
        for listed, whole, _ in forward.inputs:
            listed[:] = whole

    @staticmethod
    def _cut_argument(forward: Forward, name: str, value: Any, spec: Any, layout: Layout) -> Any:
        """Cut rows and the like once, since the same come with every block.

        Tokens are cut each time: the model may have written into them in between.
        """
        if any(isinstance(leaf, Seq | Grid) for leaf in leaves(spec)):
            return cut(value, spec, layout)
        last = forward.cuts.get(name)
        if last is None or last[0] is not value:
            last = forward.cuts[name] = (value, cut(value, spec, layout))
        return last[1]

    def _leave(self, region: Region, ends: bool) -> Callable[..., Any]:
        def hook(block: nn.Module, args: Any, out: Any) -> Any:
            forward = self._forward
            if forward is None or forward.region is not region:
                return None
            self._close(forward)
            if not ends:
                return None
            assert forward.layout is not None and forward.settled is not None
            joined = put_together(out, forward.settled.out, forward.layout, self.mesh.world)
            self._shut(forward)
            return joined

        return hook

    def _exit_before(self, region: Region, signature: Signature) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            forward = self._forward
            if forward is None or forward.region is not region:
                return None
            assert forward.layout is not None and forward.settled is not None
            bound = signature.bind(args, kwargs)
            name = region.exit[1]
            joined = put_together(bound.given().get(name), forward.settled.out, forward.layout, self.mesh.world)
            bound.replace(name, joined)
            self._shut(forward)
            return bound.call()

        return hook

    def _push(self, where: str, rule: Attn) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._forward is not None and self._forward.region is not None:
                self._forward.frames.append(Frame(where, rule))

        return hook

    def _pop(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._forward is not None and self._forward.region is not None:
            self._close(self._forward)

    def _close(self, forward: Forward) -> None:
        frame = forward.frames.pop()
        assert forward.layout is not None
        if frame.rule is not None and not frame.caught and forward.layout.cut_streams(frame.rule.kv):
            raise UncutAttentionError(
                f"{frame.where} should attend over {', '.join(frame.rule.kv)}, but no attention was seen there: it "
                "calls a kernel that passes neither the host's override nor torch's scaled_dot_product_attention; "
                "choose the pytorch attention backend"
            )

    def _attend(self, caught: Caught) -> Tensor | None:
        return None if self._forward is None else run_rule(self._forward, self.mesh, self._kernels, caught)

    def _on_whole(self, patch: Patch, specs: Mapping[str, Spec]) -> Patch:
        """A patch of the host that is shown whole tensors, and whose results are cut again."""

        def on_whole(values: dict[str, Any]) -> Any:
            forward = self._forward
            if forward is None or forward.region is None or forward.layout is None:
                return patch(values)
            layout = forward.layout
            ours = {name: spec for name, spec in specs.items() if values.get(name) is not None}
            joined = {name: put_together(values[name], spec, layout, self.mesh.world) for name, spec in ours.items()}
            out = patch({**values, **joined})
            return {name: cut(value, specs.get(name), layout) for name, value in out.items()}

        return on_whole

    def _check_control(self, model: nn.Module, control: Mapping[str, Any]) -> None:
        known = {entry.key for entry in self.plan.control}
        given = [key for key, entry in control.items() if key not in known and any(e is not None for e in entry or ())]
        if given and any(region.scope == "list" for region in self.plan.regions):
            raise ClosedWorldError(type(model).__name__, [f"control[{key!r}]" for key in given])

    def _add_control(self, control: Control, place: int) -> Callable[..., None]:
        """Add the residual of one block to what this rank holds of its result."""

        def hook(block: nn.Module, args: Any, out: Any) -> None:
            forward = self._forward
            entries = forward.control.get(control.key) if forward is not None else None
            residual = entries[place] if entries is not None and place < len(entries) else None
            if forward is None or forward.layout is None or residual is None:
                return
            hidden = out if control.out is None else out[control.out]
            offset = sum(forward.lengths[name] for name in control.after)
            first, *_ = forward.layout.held[control.stream][forward.layout.rank]
            for start, end in forward.layout.ranges(offset, offset + residual.shape[1], (control.stream,)):
                shift = first - offset
                hidden[:, start:end] += residual[:, start + shift : end + shift]

        return hook


def _is_empty(value: Any) -> bool:
    """Options that say nothing: diffusers hands an empty mapping on when it was given a LoRA scale alone."""
    return isinstance(value, Mapping) and not value


def _last_list(region: Region) -> str | None:
    """The list after whose last block the region ends, if it ends after a block."""
    if isinstance(region.exit, tuple):
        return None
    last: str = region.blocks[-1]
    return last if region.exit == "last" else region.exit
