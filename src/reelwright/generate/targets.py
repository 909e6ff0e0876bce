"""Where videos go: names, and what is refused before any sampling."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from reelwright.types import UsageError
from reelwright.video.write import FORMATS, MAX_GIF_FPS


def check_target(path: Path, fps: float) -> None:
    """UsageError where the first file could not be written: told before the sampling, not after it."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: unknown video format '{path.suffix}'; use one of {', '.join(FORMATS)}")
    if path.suffix.lower() == ".gif" and fps > MAX_GIF_FPS:
        raise UsageError(f"--fps {fps:g}: a gif shows at most {MAX_GIF_FPS} frames a second; use mp4 or webm")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path.parent}: cannot be made a folder ({error.strerror}); name another") from None
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--out {path.parent}: cannot be written to; name another folder")


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """UsageError where a result would take the place of a file that is there, unless that is wanted."""
    there = [] if overwrite else [path for path in paths if path.exists()]
    if there:
        more = f" and {len(there) - 1} more of these files" if len(there) > 1 else ""
        raise UsageError(f"{there[0]}{more}: there already; name another place, or give --overwrite to replace it")


def output_paths(out: Path, suffix: str, jobs: Sequence[tuple[str, int]]) -> list[Path]:
    """`out` itself for one video named as a file; else `stem-0001.mp4` beside it, or `prompt-seed.mp4` in a folder."""
    if out.suffix and not out.is_dir():
        if len(jobs) == 1:
            return [out]
        return [out.with_name(f"{out.stem}-{n:04d}{out.suffix}") for n in range(1, len(jobs) + 1)]
    paths: list[Path] = []
    taken = [int(m[1]) for path in out.glob("*") if (m := re.match(r"(\d{4,})-", path.name))]
    for number, (prompt, seed) in enumerate(jobs, start=1 + max(taken, default=0)):  # earlier videos stay
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "video"
        paths.append(out / f"{number:04d}-{words}-seed{seed}.{suffix}")
    return paths


def sheet_path(out: Path, paths: Sequence[Path]) -> Path:
    """Where the contact sheet of several videos goes."""
    if out.suffix and not out.is_dir():
        return out.with_name(f"{out.stem}-sheet.png")
    first, last = (path.name.partition("-")[0] for path in (paths[0], paths[-1]))  # their numbers
    return paths[0].with_name(f"{first}-{last}-sheet.png")
