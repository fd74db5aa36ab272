"""What is asked of a parallel MODEL, and what came of it: plain data that needs no host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_nodes.host._errors import HostError

if TYPE_CHECKING:
    from ray_parallel.sequence import Kind

WITHOUT_WRAPPERS = ("comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",)
"""Classes with a plan whose forward calls no wrappers, so that their innermost call cannot be taken."""


class ParallelRefusedError(HostError):
    """A MODEL cannot be computed by several devices as asked; the message gives the reason and a remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelRequest:
    """Which devices compute one MODEL together.

    Attributes:
        devices: their names, the one that samples first.
        kind: how attention is split over them.
    """

    devices: tuple[str, ...]
    kind: Kind = "ulysses"
