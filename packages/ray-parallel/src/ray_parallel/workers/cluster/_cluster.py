"""A Ray cluster: started here and ended completely, or somebody else's by address."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ray_parallel.workers.cluster._errors import ClusterError
from ray_parallel.workers.cluster._folder import ClusterFolder
from ray_parallel.workers.cluster._processes import Process, Watcher, descendants, end
from ray_parallel.workers.cluster._rendezvous import split_address
from ray_parallel.workers.cluster._starting import LateStartError, forget_token, patient_start
from ray_parallel.workers.weights._sizes import (
    StoreSize,
    disk_free_bytes,
    memory_free_bytes,
    shm_free_bytes,
    store_size,
)
from ray_parallel.workers.weights._store import StoreRoom

LOOPBACK = "127.0.0.1"
NAMESPACE = "ray-parallel"

_ENVIRONMENT = {
    # Otherwise Ray replaces the loopback address by the machine's own, and listens to the network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Otherwise Ray hides all GPUs from actors that ask it for none, whatever they were pinned to.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Otherwise Ray copies the working folder to wherever a driver under `uv run` has workers, and builds its
    # environment there a second time; ours run by the Python of the driver.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Otherwise whatever is asked of Ray without a cluster starts another one, which listens to the network.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_FOR_REMOTE = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_ENABLE_AUTO_CONNECT")
_LOOPBACKS = ("127.0.0.1", "localhost", "::1")
_ANSWER_SECONDS = 10.0
_END_SECONDS = 10.0


class Cluster:
    """A running cluster that groups of workers share; `start_cluster` and `connect_cluster` make one.

    Attributes:
        is_local: whether this process started it, and so ends it.
        room: what is left in its object store.
    """

    def __init__(
        self,
        ray: ModuleType,
        *,
        room: StoreRoom,
        environment: Mapping[str, str],
        folder: ClusterFolder | None = None,
        disconnects: bool = True,
    ) -> None:
        self.is_local = folder is not None
        self.room = room
        self._ray = ray
        self._folder = folder
        self._watcher = None if folder is None else Watcher(folder.path, _servers(folder))
        self._disconnects = disconnects
        self._environment = environment
        self._closed = False
        atexit.register(self.close)

    @property
    def folder(self) -> Path | None:
        """Where a local cluster keeps its logs and sockets while it runs."""
        return None if self._folder is None else self._folder.path

    @property
    def token(self) -> Path | None:
        """The file of a local cluster's secret; another process of this user finds it by ``RAY_AUTH_TOKEN_PATH``."""
        return None if self._folder is None else self._folder.token

    @property
    def is_closed(self) -> bool:
        """Whether it was ended or left."""
        return self._closed or not self._ray.is_initialized()

    def close(self) -> None:
        """End a local cluster, its processes, its store and its folder; leave a remote one. A second call does nothing.

        Raises:
            OSError: the folder of a local cluster cannot be removed.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        started = _servers(self._folder) if self._folder is not None else ()
        if self._disconnects:
            self._ray.shutdown()
            _restore_environment(self._environment)
        end(started, patience_seconds=_END_SECONDS)
        if self._folder is not None:
            self._folder.remove()
        # Only now: when this is interrupted before, the watcher does the rest at the end of this process.
        if self._watcher is not None:
            self._watcher.dismiss()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_cluster(
    *,
    workers: int = 2,
    shared_bytes: int = 0,
    ray_object_store_gb: float = 0.0,
    dashboard: bool = False,
    namespace: str = NAMESPACE,
    start_seconds: float = 120.0,
) -> Cluster:
    """Start a cluster of this machine alone, which listens on the loopback address only.

    It ends with this process, also when the process is killed: Ray ties its servers to the thread that starts them, so
    call this from one that lives as long as the cluster is needed. What it keeps, its token included, lies in a folder
    that only this user can enter.

    Args:
        workers: processes that will run in it.
        shared_bytes: weights that will go through the object store; 0 when they are mapped from files.
        ray_object_store_gb: size of the object store in GiB; 0 computes what is needed.
        dashboard: serve Ray's dashboard, on the loopback address too.
        namespace: Ray's namespace for the actors.
        start_seconds: how long Ray's servers may take to answer; one that is late is ended and started once more.

    Raises:
        ClusterError: this process is already connected to a cluster, or Ray does not start.
        ObjectStoreSizeError: the machine has no room for the store, or the weights do not fit into it.
    """
    size = store_size(
        shared_bytes,
        ray_object_store_gb,
        shm_bytes=shm_free_bytes(),
        disk_bytes=disk_free_bytes(),
        memory_bytes=memory_free_bytes(),
    )
    options = {
        "num_cpus": max(1, workers),
        "include_dashboard": dashboard,
        "object_store_memory": size.size_bytes,
        "namespace": namespace,
    }
    with _restored_on_failure() as environment, _ray_environment():
        # Whoever is logged in here could otherwise run code in the workers; taken back when the cluster is closed.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray = _import_ray()
        start = partial(_start, ray, options, size, start_seconds, has_own_token=not _token_is_named())
        try:
            folder = start()
        except LateStartError:
            folder = start()
        return Cluster(ray, room=StoreRoom(size.size_bytes), folder=folder, environment=environment)


def _start(
    ray: ModuleType, options: Mapping[str, Any], size: StoreSize, start_seconds: float, *, has_own_token: bool
) -> ClusterFolder:
    """Start Ray's servers once; nothing of them is left when that fails."""
    folder = ClusterFolder()
    try:
        if has_own_token:
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder.token)
            forget_token()
        with patient_start(start_seconds):
            _init(
                ray,
                "check that this machine has room for another process and its store",
                **options,
                address="local",
                num_gpus=0,
                _temp_dir=str(folder.for_ray),
                _node_ip_address=LOOPBACK,
                _plasma_directory=None if size.in_shared_memory else str(folder.for_store),
                _system_config={"automatic_object_spilling_enabled": False, "prestart_worker_first_driver": False},
            )
        found = {node["NodeManagerAddress"] for node in ray.nodes()}
        if found != {LOOPBACK}:
            raise ClusterError(
                f"Ray listens on {', '.join(sorted(found))}, because it was imported before it was set to "
                f"{LOOPBACK}; start the cluster before anything else imports ray, or set "
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 for this process"
            )
    except BaseException:
        started = _servers(folder)
        ray.shutdown()
        end(started, patience_seconds=_END_SECONDS)
        folder.remove()
        raise
    return folder


def connect_cluster(address: str, *, namespace: str = NAMESPACE) -> Cluster:
    """Use a cluster that is already running.

    Args:
        address: ``host:port`` of its head node, or ``"current"`` for the one that this process is connected to. The
            token of the cluster is taken from where Ray keeps it (``RAY_AUTH_TOKEN``, ``~/.ray/auth_token``).
        namespace: Ray's namespace for the actors.

    Raises:
        ClusterError: nobody answers there, or this process is connected to another cluster.
    """
    current = address == "current"
    host = "" if current else _require_answer(address)
    with _restored_on_failure() as environment, _ray_environment(_ENVIRONMENT if host in _LOOPBACKS else _FOR_REMOTE):
        has_token = not current and _has_token()
        if has_token:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray = _import_ray(connected=current)
        if has_token:
            forget_token()
        if not current:
            _init(ray, "check the address and the token of the cluster", address=address, namespace=namespace)
    stores = [int(node["Resources"].get("object_store_memory", 0)) for node in ray.nodes() if node["Alive"]]
    return Cluster(ray, room=StoreRoom(min(stores)), environment=environment, disconnects=not current)


def _require_answer(address: str) -> str:
    """The host of an address at which somebody listens. Ray itself would end this process when nobody does."""
    host, port = split_address(address)
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"nobody answers at {address} ({error}); check the address, that the cluster runs, and that no firewall "
            "is between"
        ) from error
    return host


def _token_is_named() -> bool:
    """Whether the environment says which token to use."""
    return any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))


def _has_token() -> bool:
    """Whether Ray finds a token here that shows a cluster who asks."""
    try:
        return _token_is_named() or (Path.home() / ".ray" / "auth_token").exists()
    except (RuntimeError, OSError):  # no home, or one that cannot be entered
        return False


def _init(ray: ModuleType, remedy: str, **arguments: Any) -> None:
    try:
        ray.init(**arguments, log_to_driver=False, configure_logging=False)
    except ClusterError:
        raise
    except Exception as error:  # Ray raises bare ones, too
        raise ClusterError(f"Ray does not start or answer ({type(error).__name__}: {error}); {remedy}") from error


def _import_ray(*, connected: bool = False) -> ModuleType:
    import ray

    if ray.is_initialized() != connected:
        raise ClusterError(
            'this process is not connected to a Ray cluster, so there is no "current" one; start one or name one'
            if connected
            else "this process is already connected to a Ray cluster, and Ray allows one; share that cluster between "
            'groups, close it first, or use it by connect_cluster("current")'
        )
    return ray


@contextmanager
def _restored_on_failure() -> Iterator[Mapping[str, str]]:
    """Today's environment; taken back when a cluster is not reached, else left to the cluster's end."""
    environment = dict(os.environ)
    try:
        yield environment
    except BaseException:
        _restore_environment(environment)
        raise


@contextmanager
def _ray_environment(names: Iterable[str] = _ENVIRONMENT) -> Iterator[Mapping[str, str]]:
    """Set Ray's own variables while it is imported and started; its processes inherit them, this one keeps its own."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: _ENVIRONMENT[name] for name in before})
    try:
        yield _ENVIRONMENT
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _servers(folder: ClusterFolder) -> tuple[Process, ...]:
    """The processes of the cluster of a folder: servers, whose command lines name it, and all that they started."""
    below = descendants(os.getpid())
    servers = [one for one in below if str(folder.path) in one.command_line()]
    return tuple(dict.fromkeys([*servers, *(one for server in servers for one in descendants(server.pid))]))


def _restore_environment(before: Mapping[str, str]) -> None:
    """Take back what Ray itself wrote into the environment of this process."""
    for name in [name for name in os.environ if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"]:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
