"""Two ways to catch the attention of a model that is not changed, and the form in which a caught call goes on.

ComfyUI asks `transformer_options["optimized_attention_override"]` before it attends; an override that is there already
is called for the whole sequence. Everything else, diffusers among it, ends in torch's scaled_dot_product_attention,
which a function mode of this thread sees. The mode also sees the calls of ComfyUI's models that pass no options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ray_parallel.sequence.plan._kernels import Kernel

OVERRIDE = "optimized_attention_override"
_POSITIONAL = ("heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
"""What the host's attention functions take after q, k and v, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """An attention call: tensors [B, S, H, D], mask of two or four dimensions or an object, and the kernel behind it.

    `obstacles` are the reasons why it cannot be done on cut sequences.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Any
    scale: float | None
    kernel: Kernel
    obstacles: tuple[str, ...] = ()


Attend = Callable[[Caught], Tensor | None]
"""attend(caught) -> [B, S, H, D], or None: not in a cut region, go on as if nothing was caught."""


def override(attend: Attend, earlier: Callable[..., Any] | None) -> Callable[..., Any]:
    """What ComfyUI calls instead of its attention function.

    Args:
        attend: what to do with the call.
        earlier: the override that was there before.
    """

    def overridden(function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        heads, mask = options["heads"], options.get("mask")
        apart, stay_apart = options.get("skip_reshape", False), options.get("skip_output_reshape", False)

        def inner(q: Tensor, k: Tensor, v: Tensor, **changed: Any) -> Any:
            """Call on with every option given in the way the caller gave it."""
            named = {**options, **changed}
            ordered = [named.pop(name) for name in _POSITIONAL[: len(args)]]
            call = (function, q, k, v, *ordered)
            return function(*call[1:], **named) if earlier is None else earlier(*call, **named)

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
            return inner(q, k, v, heads=q.shape[1], mask=mask, skip_reshape=True, skip_output_reshape=True)

        dim = q.shape[-1] if apart else q.shape[-1] // heads
        cut = [t.transpose(1, 2) if apart else t.reshape(*t.shape[:2], -1, dim) for t in (q, k, v)]
        full_mask = mask[:, None] if isinstance(mask, Tensor) and mask.ndim == 3 else mask
        out = attend(Caught(q=cut[0], k=cut[1], v=cut[2], mask=full_mask, scale=options.get("scale"), kernel=kernel))
        if out is None:
            return inner(q, k, v)
        return out.transpose(1, 2) if stay_apart else out.flatten(2)

    return overridden


class SdpaMode(TorchFunctionMode):
    """Sees every scaled_dot_product_attention of this thread while it is entered."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self._attend = attend

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Hand attention over, let everything else pass."""
        options = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        out = self._sdpa(*args, **options)
        return func(*args, **options) if out is None else out

    def _sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        obstacles = {
            "it is causal": is_causal,
            "it has dropout": dropout_p > 0.0,
            f"its queries have {query.ndim} dimensions instead of 4": query.ndim != 4,
        }

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)

        out = self._attend(
            Caught(
                q=query.transpose(1, 2),
                k=key.transpose(1, 2),
                v=value.transpose(1, 2),
                mask=attn_mask[None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask,
                scale=scale,
                kernel=kernel,
                obstacles=tuple(reason for reason, given in obstacles.items() if given),
            )
        )
        return None if out is None else out.transpose(1, 2)
