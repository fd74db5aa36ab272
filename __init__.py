"""Makes this folder a ComfyUI node pack when it lies in `custom_nodes`; anywhere else it does nothing.

It serves a clone of the repository (the packages are below `packages`) and the built pack (they are below `lib`). The
packages beside this file go first, so that they fit each other whatever else is installed. The folders `locales` and
`example_workflows` stand beside it because ComfyUI looks for both in the pack's own folder.

ComfyUI also runs on Pythons that the packages do not support. So this file keeps to the syntax of Python 3.8.
"""

import sys
from importlib.util import find_spec

if find_spec("comfy_api") is not None:
    if sys.version_info < (3, 11):  # noqa: UP036 - the host runs on older ones, too
        raise ImportError(
            "Torchspan needs Python 3.11 or newer and this ComfyUI runs on Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}; install ComfyUI on a newer Python"
        )

    from pathlib import Path

    _HERE = Path(__file__).resolve().parent
    sys.path[:0] = [str(folder) for folder in (_HERE / "lib", *sorted(_HERE.glob("packages/*/src"))) if folder.is_dir()]

    from comfy_nodes.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
