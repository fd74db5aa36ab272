"""What a cluster needs of the environment, set while Ray is imported and started, and what is given back."""

from __future__ import annotations

import importlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_parallel.workers import ClusterError, InvalidRequestError, connect_cluster
from ray_parallel.workers.cluster import _cluster as module
from ray_parallel.workers.cluster._folder import ClusterFolder
from ray_parallel.workers.cluster._processes import descendants, end
from ray_parallel.workers.cluster._starting import LateStartError, patient_start

NAMES = sorted(module._ENVIRONMENT)
settings = st.dictionaries(st.sampled_from([*NAMES, "RAY_OTHER", "PYTHONBREAKPOINT"]), st.sampled_from("abc"))


def environment() -> dict[str, str]:
    """All variables but the one by which pytest tells what it is at."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An environment without anything of Ray's, and what it holds."""
    with monkeypatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patched.delenv(name)
        yield environment()


@given(before=settings)
def test_the_variables_are_set_for_a_moment_only(before: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name in NAMES:
            patched.delenv(name, raising=False)
        for name, value in before.items():
            patched.setenv(name, value)
        before_it = environment()
        with pytest.raises(KeyError), module._ray_environment():
            assert {name: os.environ[name] for name in NAMES} == module._ENVIRONMENT
            raise KeyError
        assert environment() == before_it


@given(before=settings, written=settings)
def test_what_ray_writes_is_taken_back_when_no_cluster_comes_of_it(
    before: dict[str, str], written: dict[str, str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name in [*NAMES, "RAY_OTHER", "PYTHONBREAKPOINT"]:
            patched.delenv(name, raising=False)
        for name, value in before.items():
            patched.setenv(name, value)
        before_it = dict(os.environ)
        with pytest.raises(KeyError), module._restored_on_failure() as kept:
            os.environ.update(written)
            raise KeyError
        assert dict(os.environ) == before_it == kept


def test_every_listener_of_a_local_cluster_stays_on_this_machine_and_none_starts_by_itself() -> None:
    """Ray reads these while it is imported; a remote cluster is not told where to listen."""
    assert module._ENVIRONMENT["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert module._ENVIRONMENT["RAY_ENABLE_AUTO_CONNECT"] == "0"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in module._FOR_REMOTE
    assert set(module._FOR_REMOTE) < set(module._ENVIRONMENT)


def test_nobody_answers(clean: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ClusterError, match=rf"nobody answers at 127\.0\.0\.1:{port} .*; check the address"):
        connect_cluster(f"127.0.0.1:{port}")
    assert environment() == clean


@pytest.mark.parametrize("address", ["local", "", "127.0.0.1", "host:port"])
def test_an_address_that_is_none_is_refused(address: str, clean: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match='is no address; write "host:port"'):
        connect_cluster(address)
    assert environment() == clean


def test_without_a_connection_there_is_no_current_cluster() -> None:
    with module._ray_environment():
        import ray  # noqa: F401 (were it imported later, a cluster of another test would listen to the network)
    before = environment()
    with pytest.raises(ClusterError, match='there is no "current" one; start one or name one'):
        connect_cluster("current")
    assert environment() == before


@pytest.mark.parametrize(
    ("variables", "file", "has"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"RAY_AUTH_TOKEN": "secret"}, False, True),
        ({"RAY_AUTH_TOKEN": ""}, False, False),
        ({"RAY_AUTH_TOKEN_PATH": "/somewhere"}, False, True),
    ],
)
def test_a_token_is_where_ray_looks_for_it(
    variables: dict[str, str],
    file: bool,
    has: bool,
    clean: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert module._has_token() is has


def test_servers_are_known_by_the_folder_they_name_and_bring_their_children(tmp_path: Path) -> None:
    """As Ray's do; nobody else's process counts, whoever started it."""
    if sys.platform != "linux":
        pytest.skip("processes are read from /proc")
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    folder = ClusterFolder(tmp_path)
    with (
        subprocess.Popen(
            [sys.executable, "-S", "-c", code, str(folder.path)], stdin=-1, stdout=-1, text=True
        ) as server,
        subprocess.Popen([sys.executable, "-S", "-c", code, "elsewhere"], stdin=-1, stdout=-1, text=True) as other,
    ):
        pids = []
        for one in (server, other):
            assert one.stdout is not None
            pids.append((one.pid, int(one.stdout.readline())))
        found = module._servers(folder)
        assert {one.pid for one in found} == set(pids[0])
        for one in (server, other):
            end(descendants(one.pid), patience_seconds=0)
            one.kill()
    assert module._servers(folder) == ()
    folder.remove()


def test_a_home_that_cannot_be_entered_has_no_token(clean: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nowhere)
    assert module._has_token() is False


def test_a_folder_and_its_token_are_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    folder = ClusterFolder(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()} == {0o600}
    assert folder.token.read_text() == ClusterFolder(tmp_path).token.read_text() != ""
    folder.remove()


@pytest.mark.parametrize("late", [0, 2])
def test_ray_waits_for_its_servers_as_long_as_it_is_asked_to(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with module._ray_environment():
        services: Any = importlib.import_module("ray._private.services")
    calls: list[tuple[Any, ...]] = []

    def get_node(*arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) <= late:
            raise RuntimeError("not registered")
        return "node"

    monkeypatch.setattr(services, "get_node", get_node)
    with patient_start(5):
        assert services.get_node("address", "id") == "node"
    assert services.get_node is get_node
    assert calls == [("address", "id")] * (late + 1)
    late = 1 << 30
    with pytest.raises(LateStartError, match=r"did not answer within 0\.1 s; raise start_seconds"), patient_start(0.1):
        services.get_node()
    assert services.get_node is get_node


@pytest.mark.parametrize("lates", [0, 1, 2])
def test_servers_that_are_late_are_started_once_more(
    lates: int, clean: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def init(ray: Any, remedy: str, **arguments: Any) -> None:
        folders.append(Path(arguments["_temp_dir"]).parent)
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folders[-1] / "token")
        raise LateStartError("late") if len(folders) <= lates else ClusterError("another reason")

    monkeypatch.setattr(module, "_init", init)
    with pytest.raises(ClusterError, match="late" if lates == 2 else "another reason"):
        module.start_cluster(workers=1)
    assert len(folders) == min(lates, 1) + 1
    assert not any(folder.exists() for folder in folders)
    assert environment() == clean


def test_whatever_ray_raises_is_an_error_of_the_cluster() -> None:
    class Ray:
        @staticmethod
        def init(**_: Any) -> None:
            raise Exception("The current node timed out during startup")

    with pytest.raises(
        ClusterError, match=r"\(Exception: The current node timed out during startup\); do this"
    ) as raised:
        module._init(Ray(), "do this")  # type: ignore[arg-type]
    assert raised.value.__cause__ is not None
