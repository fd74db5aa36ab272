"""A real ComfyUI server in a separate process: started, asked over HTTP, always ended."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from get_comfyui import find_comfyui

HERE = Path(__file__).resolve().parent
PROBE = "comfyui_probe.py"
SIMULATED_MAIN = HERE / "comfyui_simulated.py"
START_SECONDS = 240
RUN_SECONDS = 240
Prompt = Mapping[str, Mapping[str, Any]]


class ServerError(AssertionError):
    """The server did not start, went away or did not answer; the message ends with its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of a prompt.

    Attributes:
        outputs: what each output node reports, by node id.
        error: the failed node's entry of the history, None when all went well.
        node_errors: what validation refused before anything ran, by node id.
        seconds: from sending to the end, polling included.
    """

    outputs: Mapping[str, Any]
    error: Mapping[str, Any] | None = None
    node_errors: Mapping[str, Any] | None = None
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """Everything that a person would read about a failure; empty when there was none."""
        if self.node_errors:
            errors = (error for node in self.node_errors.values() for error in node["errors"])
            return "\n".join(f"{error['message']}: {error['details']}" for error in errors)
        return str(self.error["exception_message"]) if self.error else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        url: where it listens, without a path.
        base: its base directory with models, custom nodes and output.
        process: the process.
        log_path: what it printed.
        start_seconds: from starting the process to the first answer.
    """

    url: str
    base: Path
    process: subprocess.Popen[bytes]
    log_path: Path
    start_seconds: float

    @property
    def log(self) -> str:
        """What the server printed until now."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return _ask(f"{self.url}{path}")

    def post(self, path: str, document: object) -> Any:
        """Send JSON to `path` and return the JSON of the answer, that of a refusal included."""
        return _ask(f"{self.url}{path}", document)

    def run(self, prompt: Prompt) -> Finished:
        """Run a prompt in API format to its end.

        Raises:
            ServerError: the process ended, or there was no end within `RUN_SECONDS`.
        """
        began = time.monotonic()
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        if "prompt_id" not in answer:
            return Finished(outputs={}, node_errors=answer.get("node_errors") or {"prompt": _prompt_error(answer)})
        identity = answer["prompt_id"]
        while time.monotonic() - began < RUN_SECONDS:
            if self.process.poll() is not None:
                raise ServerError(
                    f"the server ended with {self.process.returncode} during a prompt\n{self.log[-4000:]}"
                )
            history = self.get(f"/history/{identity}")
            if identity in history and history[identity]["status"] is not None:
                return _finished(history[identity], time.monotonic() - began)
            time.sleep(0.05)
        raise ServerError(f"no end within {RUN_SECONDS} s\n{self.log[-4000:]}")

    def latent(self, finished: Finished, node: str = "save") -> torch.Tensor:
        """The latent that the `SaveLatent` node `node` wrote."""
        assert finished.error is None, finished.message
        assert not finished.node_errors, finished.message
        (entry,) = finished.outputs[node]["latents"]
        return load_file(self.base / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"]

    def state(self) -> Any:
        """What the probe sees inside the process: memory, threads, modules, loaded models, simulated devices."""
        return self.get("/torchspan-probe/state")

    def free(self) -> None:
        """Ask for all models to be unloaded and memory to be freed, and wait until it is done."""
        self._ask_to_free("free_memory")  # which asks for the other, too
        self.post("/torchspan-probe/collect", {})

    def unload(self) -> None:
        """Ask for all models to leave the devices; what loader nodes made stays."""
        self._ask_to_free("unload_models")

    def _ask_to_free(self, what: str) -> None:
        # The worker looks for such wishes when it is woken, and sleeps for minutes: one that comes while it still
        # collects what the last prompt left, or while it reads another, is not seen before the next prompt.
        self.wait_until_idle()
        self.post("/free", {what: True})
        self.wait_until_idle()

    @contextmanager
    def capacity(self, device: int, size_bytes: int) -> Iterator[None]:
        """Let a simulated device hold so many bytes for a while."""
        before = self.state()["simulated"]["memory"][f"npu:{device}"]["capacity"]
        self.post("/torchspan-probe/capacity", {"device": device, "bytes": size_bytes})
        try:
            yield
        finally:
            self.post("/torchspan-probe/capacity", {"device": device, "bytes": before})

    def wait_until_idle(self) -> None:
        """Wait until no prompt runs and no freed memory is still on its way.

        Raises:
            ServerError: that took more than `RUN_SECONDS`.
        """
        deadline = time.monotonic() + RUN_SECONDS
        while not self.get("/torchspan-probe/idle"):
            if time.monotonic() > deadline:
                raise ServerError(f"the worker is still busy after {RUN_SECONDS} s\n{self.log[-4000:]}")
            time.sleep(0.05)


def _ask(url: str, document: object = None) -> Any:
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
    except urllib.error.HTTPError as refusal:
        text = refusal.read()
        if refusal.code != 400:
            raise ServerError(f"{url} answered {refusal.code}: {text.decode(errors='replace')}") from refusal
    return json.loads(text) if text else None


def _prompt_error(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"errors": [{"message": answer["error"]["message"], "details": answer["error"].get("details", "")}]}


def _finished(entry: Mapping[str, Any], seconds: float) -> Finished:
    failures = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    return Finished(outputs=entry["outputs"], error=failures[0] if failures else None, seconds=seconds)


def require_comfyui() -> Path:
    """The checkout; without one the test is skipped, loudly, or fails where `HOST_REQUIRED=1` asks for it."""
    folder = find_comfyui()
    missing = () if folder is None else missing_requirements(folder)
    if folder is not None and not missing:
        return folder
    reason = "no ComfyUI checkout at COMFYUI_PATH or in the cache; run tools/get_comfyui.py --from SOURCE"
    if missing:
        reason = f"the ComfyUI checkout needs {', '.join(missing)}; install what its requirements.txt lists"
    if os.environ.get("HOST_REQUIRED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def missing_requirements(folder: Path) -> tuple[str, ...]:
    """The essential requirements of a checkout that are not installed, those for its pages left out."""
    essential = (folder / "requirements.txt").read_text(encoding="utf-8").partition("#non essential")[0]
    names = (re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in essential.splitlines())
    return tuple(name for name in names if name and not name.startswith("comfyui-") and not _installed(name))


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


@contextmanager
def running_server(
    base: Path,
    *,
    packs: Sequence[str] = (),
    devices: int = 0,
    capacity_bytes: int = 1 << 30,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    probe: bool = True,
    python: Path = Path(sys.executable),
    comfyui: Path | None = None,
) -> Iterator[Server]:
    """Start a server and end it, whatever happens.

    Args:
        base: its base directory; `custom_nodes` in it holds the packs.
        packs: names of the packs to load; all others are left out.
        devices: number of simulated accelerators `npu:0` ...; 0 runs on the CPU.
        capacity_bytes: of each of them.
        arguments: more words for ComfyUI's command line.
        environment: variables besides those of this process.
        probe: also load the probe, which `Server.state` asks.
        python: the interpreter that ComfyUI runs in.
        comfyui: the checkout; None takes the one that all tests share.

    Raises:
        ServerError: it did not answer within `START_SECONDS`.
    """
    comfyui = comfyui or require_comfyui()
    nodes = base / "custom_nodes"
    nodes.mkdir(parents=True, exist_ok=True)
    wanted = list(packs)
    if probe:
        (nodes / PROBE).write_text((HERE / PROBE).read_text(encoding="utf-8"), encoding="utf-8")
        wanted.append(PROBE)
    port = _free_port()
    command = [str(python), str(comfyui / "main.py"), "--cpu"]
    if devices:
        command = [str(python), str(SIMULATED_MAIN), str(devices), str(capacity_bytes), str(comfyui)]
    command += ["--listen", "127.0.0.1", "--port", str(port), "--disable-all-custom-nodes", "--disable-api-nodes"]
    # A page of our own: the host's pages come in a package of their own, which nothing here needs.
    front_end = base / "front-end"
    front_end.mkdir(exist_ok=True)
    (front_end / "index.html").write_text("<!doctype html>", encoding="utf-8")
    command += ["--front-end-root", str(front_end), "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", *arguments]
    if wanted:
        command += ["--whitelist-custom-nodes", *wanted]
    log_path = base / f"server-{port}.log"
    began = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=base,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log_path, began + START_SECONDS)
        yield Server(url=url, base=base, process=process, log_path=log_path, start_seconds=time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log_path: Path, deadline: float) -> None:
    while True:
        try:
            _ask(f"{url}/system_stats")
            return
        except (urllib.error.URLError, ConnectionError) as error:
            log = log_path.read_text(encoding="utf-8", errors="replace")[-4000:]
            if process.poll() is not None:
                raise ServerError(f"the server ended with {process.returncode} while starting\n{log}") from error
            if time.monotonic() > deadline:
                raise ServerError(f"the server did not answer within {START_SECONDS} s\n{log}") from error
            time.sleep(0.1)
