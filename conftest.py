"""Makes the fixture `sim` (simulated devices, see tools/simdev) known to every test of the repository."""

from __future__ import annotations

import importlib
from pathlib import Path

pytest_plugins = ["simdev.pytest_plugin"]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests only where there are examples: looking imports the module, and some need ComfyUI's process."""
    if collection_path.suffix != ".py" or collection_path.name.startswith("test_"):
        return None
    if ">>>" not in collection_path.read_text(encoding="utf-8"):
        return True
    _import_package_of(collection_path)
    return None


def _import_package_of(path: Path) -> None:
    """Import the package of a file before pytest imports the file.

    Otherwise pytest imports the package itself, and then the file once more although the package has imported it: two
    classes of each name, whose objects are never equal.
    """
    names: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if names and folder.name == "src":
        importlib.import_module(".".join(names))
