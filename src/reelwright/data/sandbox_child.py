"""What runs inside a decoding child (`data.sandbox` starts it): it limits itself, then does one job after the other.

`python -P -m reelwright.data.sandbox_child DESCRIPTOR PARENT MEMORY_MB`, where DESCRIPTOR is the socket to its owner.
"""

from __future__ import annotations

import errno
import gc
import importlib
import math
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from reelwright.children import end_with_parent

_OPEN_FILES = 64
_COLLECTED_AT = 32  # objects; PyAV puts frames in reference cycles, and the collector does not count their megabytes
_PARENT_CHECK_SECONDS = 5.0  # where no signal tells of the owner's death
# Told to the whole group or session, as by a batch system, they are for the owner to act on; a child ends with it.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def limit_resources(memory_mb: int) -> None:
    """Bound what decoding may take from here on: memory, open files, and no writing, processes, threads or core dumps.

    The memory is address space (RLIMIT_AS) on top of what is mapped now, so that the setting means the same wherever
    libraries differ in size. macOS accepts that limit without keeping it; there only the limits of time hold.
    """
    space = memory_mb << 20
    with suppress(OSError):  # proc(5): the first number is the mapped size in pages
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        space += pages * os.sysconf("SC_PAGE_SIZE")
    bounds = {"RLIMIT_AS": space, "RLIMIT_NOFILE": _OPEN_FILES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, bound in bounds.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            with suppress(OSError, ValueError):  # a limit this system does not know, or an even lower one in force
                resource.setrlimit(kind, (bound, bound))


def limit_processor_seconds(seconds: float) -> None:
    """Be killed (SIGXCPU) once the next job has used this much processor time, rounded up to whole seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    bound = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes | memoryview]:
    from reelwright.data.decode import BadVideo
    from reelwright.data.sandbox_messages import pack_result, unpack

    try:
        module, _, name = request["function"].rpartition(".")  # its owner chose from the allow-list
        function = getattr(importlib.import_module(module), name)
        arguments = {key: unpack(value) for key, value in request["arguments"].items()}
        limit_processor_seconds(request["seconds"])
        return pack_result(function(**arguments))
    except ImportError as error:
        return {"missing": str(error)}, b""
    except Exception as error:  # whatever a file made for it can bring about must not end the run
        if _lacked_memory(error):
            return {"memory": True}, b""
        if isinstance(error, BadVideo):
            return {"bad": str(error)}, b""
        if isinstance(error, OSError):
            return {"unreadable": f"cannot be read: {error.strerror or error}"}, b""
        # Ours or a library's as likely as the file's: another version may read it, so it is not remembered.
        return {"unreadable": f"decoding it failed unexpectedly: {type(error).__name__}: {error}"}, b""


def _lacked_memory(error: BaseException | None) -> bool:
    """Whether an error stems from one of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    descriptor, parent, memory_mb = map(int, sys.argv[1:])
    end_with_parent(parent)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    from reelwright.data.sandbox_messages import receive, send

    gc.freeze()  # what is there by now stays, so that looking for cycles often is cheap
    gc.set_threshold(_COLLECTED_AT)
    limit_resources(memory_mb)
    send(connection, {"ready": True})
    with suppress(EOFError, OSError):  # its owner is gone, or done with it
        while True:
            while not select.select([connection], [], [], _PARENT_CHECK_SECONDS)[0]:
                if os.getppid() != parent:
                    return
            request, _ = receive(connection)
            send(connection, *_answer(request))


if __name__ == "__main__":
    main()
