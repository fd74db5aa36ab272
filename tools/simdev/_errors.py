"""The error tree of simdev: every message names the thing, the reason and the remedy."""

from __future__ import annotations


class SimdevError(RuntimeError):
    """Something about the simulated devices themselves is wrong; base of the tree.

    A violation of stream order inside the simulation is no `SimdevError`: it is raised by the operator that commits
    it, as the `RuntimeError` "simdev race: ...".

    Attributes:
        thing: what the error is about.
        reason: why it cannot go on.
        remedy: what would fix it.
    """

    def __init__(self, thing: str, reason: str, remedy: str) -> None:
        super().__init__(f"{thing}: {reason}\n{remedy}")
        self.thing = thing
        self.reason = reason
        self.remedy = remedy


class BuildError(SimdevError):
    """The native library could not be compiled.

    Attributes:
        compiler_output: what the compiler printed; empty when it could not be started.
    """

    def __init__(self, thing: str, reason: str, remedy: str, *, compiler_output: str = "") -> None:
        super().__init__(thing, f"{reason}\n{compiler_output}".rstrip(), remedy)
        self.compiler_output = compiler_output


class CompilerNotFoundError(BuildError):
    """There is no C++ compiler: the one build error that a test run may answer by skipping."""


class InstallError(SimdevError):
    """The devices cannot be installed in this process, or are used before they are."""
