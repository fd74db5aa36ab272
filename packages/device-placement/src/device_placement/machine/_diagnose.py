"""Why there are not more devices: from what was found out to sentences with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from device_placement.machine._system_facts import SystemFacts, gather

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that explains which devices are seen.

    Attributes:
        level: ``"ok"``, ``"note"`` (it costs speed, or explains something) or ``"problem"`` (a device is missing).
        subject: the topic, one or two words.
        message: what was found.
        remedy: what would change it; empty where nothing needs to.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""


def diagnose() -> tuple[Finding, ...]:
    """Explain which devices this process sees, and why not more.

    Looks at the build of torch, drivers, device files, visibility variables, containers, WSL and peer access; changes
    nothing. Problems come first.
    """
    return findings(gather())


def findings(facts: SystemFacts) -> tuple[Finding, ...]:
    """What the facts mean, problems first."""
    found = [*_build(facts), *_driver(facts), *_visibility(facts), *_missing(facts), *_speed(facts), *_seen(facts)]
    order: tuple[Level, ...] = ("problem", "note", "ok")
    return tuple(sorted(found, key=lambda finding: order.index(finding.level)))


def _seen(facts: SystemFacts) -> Iterator[Finding]:
    if facts.accelerators:
        yield Finding(level="ok", subject="devices", message=f"torch sees {', '.join(facts.accelerators)} and cpu")
    else:
        yield Finding(level="note", subject="devices", message="torch sees no accelerator, only cpu")


def _build(facts: SystemFacts) -> Iterator[Finding]:
    """A torch that was not built for the adapters on the bus."""
    if facts.built_for or facts.accelerators:
        built = ", ".join(facts.built_for) or "a plugged-in backend"
        yield Finding(level="ok", subject="torch", message=f"torch {facts.torch_version} is built for {built}")
        return
    makers = " and ".join(dict.fromkeys(facts.gpus_on_bus or ()))
    yield Finding(
        level="problem" if makers else "note",
        subject="torch",
        message=f"torch {facts.torch_version} is built for the CPU alone",
        remedy=f"install a torch that is built for your {makers or 'GPU'} device, see https://pytorch.org/get-started",
    )


def _driver(facts: SystemFacts) -> Iterator[Finding]:
    """What keeps a torch that was built for CUDA from finding a device."""
    if facts.refusal is None or _hidden_by(facts) is not None:
        return
    on_bus = "NVIDIA" in (facts.gpus_on_bus or ())
    expected = on_bus or facts.nvidia_driver or facts.gpus_on_bus is None
    if "too old" in facts.refusal:
        remedy = "update the NVIDIA driver, or install a torch that is built for an older CUDA"
    elif facts.nvidia_driver and not facts.nvidia_nodes and not facts.is_wsl:
        remedy = "in a container, start it with access to the devices (docker run --gpus all)"
    elif facts.is_wsl:
        remedy = "install the NVIDIA driver on the Windows side (not inside WSL) and run wsl --update"
    elif on_bus:
        remedy = "install the NVIDIA driver and restart; nvidia-smi must list the device"
    else:
        remedy = "nothing, unless this machine should have an NVIDIA device: then check that it is seated and powered"
    yield Finding(
        level="problem" if expected else "note",
        subject="driver",
        message=f"torch cannot start CUDA: {facts.refusal}",
        remedy=remedy,
    )


def _visibility(facts: SystemFacts) -> Iterator[Finding]:
    """Variables that hide devices."""
    for name, value in facts.variables.items():
        shown = [part.strip() for part in value.split(",") if part.strip() not in ("", "-1")]
        hides_all = not shown or value.strip().startswith("-1")
        yield Finding(
            level="problem" if hides_all else "note",
            subject=name,
            message=f"{name}={value!r} hides {'every device' if hides_all else 'all devices but ' + ', '.join(shown)}",
            remedy=f"unset {name} before the program starts to see all of them",
        )


def _hidden_by(facts: SystemFacts) -> str | None:
    """The variable that hides every device, if one does."""
    return next((finding.subject for finding in _visibility(facts) if finding.level == "problem"), None)


def _missing(facts: SystemFacts) -> Iterator[Finding]:
    """Fewer devices than adapters on the bus, and nothing else that explains it."""
    on_bus = (facts.gpus_on_bus or ()).count("NVIDIA")
    seen = sum(name.startswith("cuda") for name in facts.accelerators)
    if 0 < seen < on_bus and not facts.variables:
        yield Finding(
            level="problem",
            subject="devices",
            message=f"{on_bus} NVIDIA adapters are on the PCI bus but torch sees {seen}",
            remedy="check nvidia-smi for the others, and in a container that all of them are passed in (--gpus all)",
        )


def _speed(facts: SystemFacts) -> Iterator[Finding]:
    """What works, but slower than it could."""
    if facts.is_wsl:
        yield Finding(
            level="note",
            subject="WSL",
            message="this is Linux inside Windows: it pins little host memory and has no copies between devices",
            remedy="give WSL more memory in .wslconfig, or run natively, where streaming from the host is slow",
        )
    if facts.unreachable_peers:
        pairs = ", ".join(f"{owner} to {reader}" for reader, owner in facts.unreachable_peers)
        yield Finding(
            level="note",
            subject="peer copies",
            message=f"no direct way from {pairs}; copies go through the host",
            remedy="NVLink or a common PCIe switch makes a direct way; drivers of consumer cards may switch it off",
        )
