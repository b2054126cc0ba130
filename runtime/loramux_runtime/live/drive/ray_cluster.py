"""This module opens a Ray cluster for this process: one of its own, or one that is there.

There is no torch in here. Ray is imported here and only here. Its security is that of its network:
a cluster that is started here listens on the loopback interface only, asks for a token that nobody
else knows, and has no dashboard and no usage statistics. One that is joined is as its owner made
it; it must ask for a token too.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from typing import Any, Final

from loramux_traces.errors import StateError, UsageError

OBJECT_STORE_BYTES: Final = 256 << 20
"""Size of the object store of a cluster that is started here.

States of jobs pass through it one at a time, larger ones by way of the disk.
"""
_AUTH: Final = "RAY_AUTH_MODE"
_OWN: Final = {
    _AUTH: "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray looks up the host's own address even where it is told 127.0.0.1, except on systems on
    # which it supports no cluster of several hosts. This setting makes Ray take the host for such a
    # system (seen in 2.60; `_check_loopback` sees to it)
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def need_ray() -> None:
    """Raise UsageError where ray is not installed; ray is not imported for that."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise UsageError("this needs ray: pip install 'loramux[ray]'")


class RayCluster:
    """Starts a Ray cluster on this host or joins a running one, and closes it.

    `address`: of a running cluster; None: start one on this host, with `cpus` CPUs at least.
    UsageError where ray is not installed or the cluster asks for no token; StateError where Ray
    cannot be started or joined, or was imported before (it reads its settings then).
    """

    def __init__(self, address: str | None = None, *, cpus: int = 1) -> None:
        need_ray()
        asks = os.environ.get(_AUTH) == "token"
        if address is not None and not asks:
            raise UsageError(
                f"a Ray cluster that asks for no token runs anybody's code: set {_AUTH}=token on every node and here"
            )
        if "ray" in sys.modules and not asks:
            raise StateError("ray has been imported already, without a token to ask for")
        if "ray" in sys.modules and importlib.import_module("ray").is_initialized():
            raise StateError("this process has Ray open already")
        self._folder: str | None = None
        options: dict[str, Any] = {"address": address, "log_to_driver": False}
        if address is None:
            os.environ.update(_OWN)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # sockets lie in this folder, and their paths must not be longer than 107 characters
            self._folder = tempfile.mkdtemp(prefix="loramux-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": max(cpus, os.cpu_count() or 1),
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": self._folder,
            }
        self.ray: Any = importlib.import_module("ray")
        try:
            if address is None:
                _check_loopback(self.ray)
            self.ray.init(logging_level="WARNING", **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self.close()
            raise StateError(f"Ray cannot be started or joined: {error}") from error

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        self.ray.shutdown()
        for _ in range(20):
            # Ray's processes write logs until they are gone
            if self._folder is None or not os.path.exists(self._folder):
                return
            shutil.rmtree(self._folder, ignore_errors=True)
            time.sleep(0.1)


def _check_loopback(ray: Any) -> None:
    """Raise StateError unless the servers of a cluster will listen on the loopback interface only.

    The cluster is one that this process starts.
    """
    found = ray.util.get_node_ip_address()
    if found not in ("127.0.0.1", "::1"):
        raise StateError(f"this ray ({ray.__version__}) would listen on {found}, not on the loopback interface only")
