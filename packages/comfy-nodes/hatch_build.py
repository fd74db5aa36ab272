"""Takes what ComfyUI shows from the top of the repository into the wheel, where `torchspan link` finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHOWN_BY_THE_HOST = ("example_workflows", "locales")


class ShownByTheHost(BuildHookInterface):  # type: ignore[misc]  # hatchling is not there when mypy runs
    """ComfyUI looks for templates and texts in the folder of a pack itself, which of a clone is the repository.

    A source distribution carries them at its own top, so that a wheel can be built from it, too. An editable install
    has no copies: its code lies in the repository already.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a wheel or a source distribution.

        Raises:
            FileNotFoundError: a folder is neither at the top of the repository nor beside this file.
        """
        if version == "editable":
            return
        here = Path(self.root)
        target = "" if self.target_name == "sdist" else "comfy_nodes/"
        for name in SHOWN_BY_THE_HOST:
            places = (here / name, here.parents[1] / name)
            found = next((place for place in places if place.is_dir()), None)
            if found is None:
                raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, places))}; build from a whole clone")
            build_data["force_include"][str(found)] = f"{target}{name}"
