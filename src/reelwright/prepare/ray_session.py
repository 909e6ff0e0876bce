"""A connection to Ray: to a cluster that is there, or to one started for this process alone, which ends with it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reelwright.types import UsageError

STORE_BYTES = 256 << 20  # shared memory of a Ray started here, at least
ANSWER_SECONDS = 10.0
LONGEST_FOLDER = 29  # letters: below it Ray makes sockets, whose paths may have 104
EXTRA_MISSING = "engine=ray needs Ray Data: pip install 'reelwright[ray]', or leave engine=ray out"


@contextmanager
def connected(address: str | None = None, num_cpus: int | None = None, store_bytes: int = STORE_BYTES) -> Iterator[Any]:
    """The module `ray`, connected. One that the caller is connected to already is used and left as it is.

    Without `address` a Ray of `num_cpus` starts here: it listens on this machine alone, sends nothing to anyone, and
    leaves neither process nor file behind. UsageError where Ray is not installed or the cluster does not answer.
    """
    connected_before = "ray" in sys.modules and _imported().is_initialized()
    if address is None and not connected_before:
        # Read when ray is imported and when it starts: only this machine can connect, and only who knows the token.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it calls errors what is none of the user's
    ray = _imported()
    with _quiet():
        if connected_before:
            yield ray
        elif address is None:
            with _started(ray, num_cpus, max(store_bytes, STORE_BYTES)):
                yield ray
        else:
            with _joined(ray, address):
                yield ray


def _imported() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError(EXTRA_MISSING) from None
    return ray


@contextmanager
def _started(ray: Any, num_cpus: int | None, store_bytes: int) -> Iterator[None]:
    short = len(tempfile.gettempdir()) <= LONGEST_FOLDER
    folder = tempfile.mkdtemp(prefix="ray-", dir=None if short else "/tmp")
    try:
        with _hushed():
            ray.init(
                "local", num_cpus=num_cpus, object_store_memory=store_bytes, include_dashboard=False,
                log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder,
            )  # fmt: skip
        yield
    finally:
        ray.shutdown(wait_for_processes=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    try:
        try:
            if ":" in address:  # Ray itself would try for five minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
            with _hushed():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"address = '{address}': no Ray cluster answers there ({' '.join(str(error).split())[:300]}); "
                "give what `ray start --head` printed, such as 10.0.0.1:6379"
            ) from None
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray takes over SIGTERM, logs at length, and prints what it has to say of workers among a command's results."""
    log = logging.getLogger("ray.data")
    level, in_main_thread = log.level, threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    log.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what compiled code writes to standard error: Ray's announces there how little it will write."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
