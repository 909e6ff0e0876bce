"""Where uploads arrive before they are checked and stored: emptied, as Gradio leaves what was cut off or refused."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

KEPT_SECONDS = 3600.0  # an upload that still arrives is not older


def clear_incoming(folder: Path, older_than_seconds: float = KEPT_SECONDS) -> None:
    """Remove what has not changed for so long; what cannot be removed stays for the next time."""
    now = time.time()
    for path in list(folder.iterdir()):
        with contextlib.suppress(OSError):
            if now - path.lstat().st_mtime < older_than_seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
