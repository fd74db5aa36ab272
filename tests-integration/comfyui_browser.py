"""ComfyUI's own editor in a real browser: opened on a running server, used through its own functions and buttons."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from comfyui_server import Server
from conftest import PACK

LOAD_MILLISECONDS = 120_000
WAIT_MILLISECONDS = 20_000

OF_THE_HOST = (
    "ComfyApp graph accessed before initialization",
    # The host asks for templates, packs and the models of its first workflow, which it offers elsewhere.
    "Error loading core workflow templates",
    "Connecting to 'https://",
    "Fetch API cannot load https://",
    "Failed to load resource",
)
"""Beginnings of what the editor's console says without us; what fails to load is looked at by its address."""

_READY = "() => window.app?.vueAppReady && window.LiteGraph?.registered_node_types?.TorchspanPlan"
_LISTEN = """() => {
    window.finished = [];
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        window.app.api.addEventListener(kind, (event) => window.finished.push([kind, event.detail]));
}"""
_OPEN = """([text, name]) =>
    window.app.handleFile(new File([text], `${name}.json`, { type: "application/json" }))"""
_SETTLED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_NODES = """() => window.app.graph._nodes.map((node) => ({
    id: String(node.id),
    kind: node.type,
    known: node.type in window.LiteGraph.registered_node_types,
    red: Boolean(node.has_errors),
    sockets: (node.inputs ?? []).map((each) => each.name),
    widgets: (node.widgets ?? []).map((each) => ({
        name: each.name, value: each.value ?? null, choices: [each.options?.values ?? []].flat(),
        least: each.options?.min ?? null, most: each.options?.max ?? null,
    })),
}))"""
_LINKS = """() => Array.from(window.app.graph.links.values(), (link) =>
    [String(link.origin_id), link.origin_slot, String(link.target_id), link.type])"""
TOAST = ".p-toast-message, [data-testid=toast]"
"""A message that comes and goes, in the editor of 1.49 and in that of 1.58."""

TOAST_CLOSE = ".p-toast-close-button, [data-testid=toast-close]"
_FEWER = "([selector, count]) => document.querySelectorAll(selector).length < count"
_COMPLAINTS_SHOWN = (
    f"[data-testid=error-overlay], [data-testid=error-group-execution], {TOAST}, [role=dialog], [role=alert]"
)


def require_editor() -> Path:
    """The folder of the editor's pages; the test is skipped where it, playwright or Chromium is not there."""
    missing = [
        name
        for name, there in (
            ("the package comfyui-frontend-package", find_spec("comfyui_frontend_package")),
            ("the package playwright", find_spec("playwright")),
            ("a program named chromium", shutil.which("chromium")),
        )
        if not there
    ]
    if missing:
        reason = f"the editor needs {' and '.join(missing)}; run uv sync --group host --group browser"
        if os.environ.get("HOST_REQUIRED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    found = find_spec("comfyui_frontend_package")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "static"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownWidget:
    """A widget as the editor has it.

    Attributes:
        name: what it is called.
        value: what it holds.
        choices: what a list offers; empty for what is no list.
        least: smallest number.
        most: largest number.
    """

    name: str
    value: Any
    choices: list[Any]
    least: float | None
    most: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownNode:
    """A node as the editor shows it.

    Attributes:
        id: its number.
        kind: its type.
        known: whether the editor has nodes of that type.
        red: whether it is marked as broken.
        sockets: names of its inputs.
        widgets: its widgets, in order.
    """

    id: str
    kind: str
    known: bool
    red: bool
    sockets: list[str]
    widgets: list[ShownWidget]

    @property
    def values(self) -> dict[str, Any]:
        """Values of the widgets by name, in order."""
        return {widget.name: widget.value for widget in self.widgets}


@dataclass(frozen=True, slots=True, kw_only=True)
class Editor:
    """The editor in a browser.

    Attributes:
        page: playwright's page.
        server: what it talks to.
        complaints: errors of the page, its console and of what it loads from the pack, until now.
    """

    page: Any
    server: Server
    complaints: list[str]

    def open(self, document: Mapping[str, Any], name: str = "workflow") -> list[ShownNode]:
        """Open a workflow in either form as a file that is dropped on the editor, and return its nodes."""
        self.page.evaluate(_OPEN, [json.dumps(document), name])
        self.page.evaluate(_SETTLED)
        return self.nodes()

    def nodes(self) -> list[ShownNode]:
        """The nodes of the open workflow, in order of their numbers."""
        shown = [
            ShownNode(**{**each, "widgets": [ShownWidget(**widget) for widget in each["widgets"]]})
            for each in self.page.evaluate(_NODES)
        ]
        return sorted(shown, key=lambda node: (len(node.id), node.id))

    def links(self) -> list[tuple[str, int, str, str]]:
        """Links of the open workflow: from which node and output, to which node, of which type."""
        return sorted(tuple(link) for link in self.page.evaluate(_LINKS))

    def prompt(self) -> dict[str, Any]:
        """What the editor would send to the server."""
        prompt: dict[str, Any] = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        return prompt

    def saved(self) -> dict[str, Any]:
        """What the editor would write to a file."""
        graph: dict[str, Any] = self.page.evaluate("() => window.app.graph.serialize()")
        return graph

    def told(self) -> str:
        """Everything that the editor shows in boxes about errors; empty when there is none."""
        boxes = self.page.locator(_COMPLAINTS_SHOWN).all()
        return "\n".join(box.inner_text() for box in boxes if box.is_visible())

    def close_toasts(self) -> None:
        """Close every message, one after the other: a closed one leaves its place to the next."""
        button = self.page.locator(TOAST_CLOSE)
        while shown := button.count():
            button.first.click()
            self.page.wait_for_function(_FEWER, arg=[TOAST_CLOSE, shown])
        self.page.locator(TOAST).first.wait_for(state="detached")

    def press_run(self) -> None:
        """Press the button that sends the workflow to the server."""
        self.page.evaluate("() => { window.finished.length = 0 }")
        self.page.locator("[data-testid=queue-button]").click()

    def wait_for_end(self) -> tuple[str, dict[str, Any]]:
        """Wait for the end of the run; return the kind of end, and what the server said about it."""
        self.page.wait_for_function("() => window.finished.length > 0")
        (end,) = self.page.evaluate("() => window.finished")
        return end[0], end[1]

    def output(self, number: str) -> dict[str, Any]:
        """What the editor was told of a node's output."""
        outputs: dict[str, Any] = self.page.evaluate("(number) => window.app.nodeOutputs[number]", number)
        return outputs

    def show_errors(self) -> Any:
        """Press the button of the box that says that there are errors; return the panel that opens."""
        self.page.locator("[data-testid=error-overlay-see-errors]").click()
        panel = self.page.locator("[data-testid=error-group-execution]")
        panel.wait_for()
        return panel


@contextmanager
def browsing() -> Iterator[Any]:
    """Start Chromium and end it, whatever happens."""
    require_editor()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def editing(browser: Any, server: Server) -> Iterator[Editor]:
    """Open the editor of a server that was started with `require_editor`'s pages."""
    # Otherwise the editor greets a newcomer with a box over everything.
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(WAIT_MILLISECONDS)
    page.on("pageerror", lambda error: complaints.append(f"page: {error}"))
    page.on("console", lambda message: _console(complaints, message))
    page.on("response", lambda response: _response(complaints, response))
    try:
        page.goto(server.url)
        page.wait_for_function(_READY, timeout=LOAD_MILLISECONDS)
        page.evaluate(_LISTEN)
        yield Editor(page=page, server=server, complaints=complaints)
    finally:
        page.close()


def _console(complaints: list[str], message: Any) -> None:
    if message.type == "error" and not message.text.startswith(OF_THE_HOST):
        complaints.append(f"console: {message.text}")


def _response(complaints: list[str], response: Any) -> None:
    # A document is first looked for in the language of the person, and ours have one language.
    ours = f"/{PACK}" in response.url and not response.url.endswith("/en.md")
    if ours and response.status >= 400:
        complaints.append(f"{response.status} for {response.url}")
