"""The innermost call of a diffusion model, where another way to compute its forward is put in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.patcher_extension as extension

KEY = "torchspan_parallel"
"""Under which this pack keeps its wrappers and its other models at a MODEL of the host."""

OPTIONS = "transformer_options"
_HOST_ONLY = ("wrappers", "callbacks")

Forward = Callable[["Call"], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a diffusion model, as its innermost wrapper got it.

    Attributes:
        args: by position.
        kwargs: by name, without the options.
        options: `transformer_options` without wrappers and callbacks, which have run.
        place: position of the options among `args`; None: they came by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    place: int | None

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Find the options; some classes of the host hand them on by position."""
        place = next((i for i, value in enumerate(args) if isinstance(value, dict) and "sample_sigmas" in value), None)
        options = kwargs.get(OPTIONS) or {} if place is None else args[place]
        return cls(
            args=tuple(args),
            kwargs={name: value for name, value in kwargs.items() if name != OPTIONS},
            options={name: value for name, value in options.items() if name not in _HOST_ONLY},
            place=place,
        )

    def with_options(self, options: Mapping[str, Any]) -> Call:
        """The same call with other options."""
        return replace(self, options=options)

    def on(self, module: Any) -> Any:
        """Make the call."""
        options = dict(self.options)
        if self.place is None:
            return module(*self.args, **self.kwargs, **{OPTIONS: options})
        return module(*self.args[: self.place], options, *self.args[self.place + 1 :], **self.kwargs)


def install(patcher: Any, running: Callable[[], Forward | None]) -> None:
    """Give the innermost call of a diffusion model to `running()`, while there is something to give it to.

    Everything that the host and other packs put around a model has run by then, once, in the caller's thread: caches,
    wrappers and hooks need not know that several devices compute.

    Args:
        patcher: the host's MODEL.
        running: what computes the call now; None: the model itself does.
    """

    def innermost(executor: Any, *args: Any, **kwargs: Any) -> Any:
        forward = running()
        if forward is None:
            return executor(*args, **kwargs)
        later = executor.wrappers[executor.idx + 1 :]
        if later:  # added after this one: they belong around it
            inner = extension.WrapperExecutor(executor.original, executor.class_obj, [*later, innermost], 0)
            return inner.execute(*args, **kwargs)
        return forward(Call.of(args, kwargs))

    patcher.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, KEY, innermost)
