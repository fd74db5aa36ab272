"""Write a picture of an example workflow in ComfyUI's own editor: `comfyui_picture.py EXAMPLE OUT.jpg`.

The server has this pack alone, and empty files for the models that our workflows name. Run it with the folders `tools`,
`tests-integration` and `packages/comfy-nodes/tests` on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from comfyui_browser import Editor, browsing, editing, require_editor
from comfyui_browser_fixtures import EXAMPLES, put_files
from comfyui_server import running_server
from conftest import PACK, ROOT

QUALITY = 85
SHOW = """(scale) => {
    document.querySelectorAll(".side-tool-bar-container").forEach((each) => each.remove());
    const canvas = window.app.canvas;
    const [x, y] = window.app.graph._nodes.reduce(
        ([left, top], node) => [Math.min(left, node.pos[0]), Math.min(top, node.pos[1])], [Infinity, Infinity]);
    canvas.ds.scale = scale;
    canvas.ds.offset = [90 / scale - x, 120 / scale - y];
    canvas.show_info = false;
    canvas.draw(true, true);
}"""


def photograph(editor: Editor, example: Path, out: Path, scale: float) -> None:
    """Open an example, and write what the browser shows from its upper left corner on."""
    editor.open(json.loads(example.read_text(encoding="utf-8")), example.stem)
    editor.page.evaluate(SHOW, scale)
    editor.page.wait_for_timeout(1000)
    editor.page.screenshot(path=str(out), type="jpeg", quality=QUALITY)


def main() -> None:
    """Start a server and a browser, and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("example", choices=[each.stem for each in EXAMPLES], metavar="EXAMPLE")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=0.8, help="of the graph (default: %(default)s)")
    options = parser.parse_args()
    (example,) = (each for each in EXAMPLES if each.stem == options.example)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        put_files(base, base / "no-models")
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / PACK).symlink_to(ROOT)
        pages = ["--front-end-root", str(require_editor())]
        with (
            browsing() as browser,
            running_server(base, packs=[PACK], probe=False, arguments=pages) as server,
            editing(browser, server) as editor,
        ):
            photograph(editor, example, options.out, options.scale)


if __name__ == "__main__":
    main()
