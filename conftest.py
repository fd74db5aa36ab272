"""Makes the fixture `sim` (simulated devices, see tools/simdev) known to every test of the repository."""

from __future__ import annotations

from pathlib import Path

pytest_plugins = ["simdev.pytest_plugin"]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests only where there are examples: looking imports the module, and some need ComfyUI's process."""
    if collection_path.suffix != ".py" or collection_path.name.startswith("test_"):
        return None
    return ">>>" not in collection_path.read_text(encoding="utf-8") or None
