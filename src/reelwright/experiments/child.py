"""`python -m reelwright.experiments.child PEAK COMMAND...`: our command line, in a process that ends with its parent.

Standard input is a pipe whose other end the parent holds and never writes to: its end means that the parent is gone,
however it went, on every system that has pipes. What the GPU allocated at most is left in the file PEAK.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

GRACE_SECONDS = 60.0  # to finish a step and a save


def main() -> None:
    peak, sys.argv = Path(sys.argv[1]), ["reelwright", *sys.argv[2:]]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        runpy.run_module("reelwright", run_name="__main__", alter_sys=True)
    finally:
        _write_gpu_peak(peak)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # training saves and stops, anything else just stops
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _write_gpu_peak(path: Path) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        path.write_text(json.dumps(torch.cuda.max_memory_allocated()), encoding="utf-8")


if __name__ == "__main__":
    main()
