"""A job and its record on disk: one JSON file each, replaced whole, so that the list is true after any kill."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from reelwright.durable import replace_file

JobKind = Literal["generate", "refine", "noise", "inspect", "prepare", "train", "evaluate"]
JobState = Literal["queued", "running", "done", "failed", "stopped", "interrupted"]
Lane = Literal["video", "training"]

LANES: dict[JobKind, Lane] = {
    "generate": "video", "refine": "video", "noise": "video",
    "inspect": "training", "prepare": "training", "train": "training", "evaluate": "training",
}  # fmt: skip
_FILE = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True)
class JobProgress:
    """How far a job is; total 0 where that is not known."""

    done: int = 0
    total: int = 0
    text: str = ""


@dataclass(frozen=True)
class Job:
    """One job as it is at this moment. `outputs` are names relative to the workspace's root."""

    id: str
    kind: JobKind
    request: dict[str, Any]  # as validated, see requests.py
    state: JobState
    progress: JobProgress = field(default_factory=JobProgress)
    outputs: tuple[str, ...] = ()  # videos, a run directory (known while it waits), pages
    notes: tuple[str, ...] = ()  # warnings to show beside the outputs
    error: str = ""  # one message: why it failed, or was stopped or interrupted
    created: float = 0.0  # seconds since the epoch
    started: float | None = None
    ended: float | None = None
    process: str = ""  # see processes.identity_of; '' unless running

    @property
    def lane(self) -> Lane:
        return LANES[self.kind]

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")


class JobStore:
    """ROOT/.reelwright/jobs: NUMBER.json for each job, and a folder NUMBER/ for what it prints."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> list[Job]:
        """All jobs, oldest first. A record that cannot be read is set aside as NUMBER.json.damaged."""
        return sorted(self._read_all(), key=lambda job: int(job.id))

    def _read_all(self) -> Iterator[Job]:
        for path in list(self._folder.iterdir()):
            match = _FILE.fullmatch(path.name)
            if path.name.endswith((".part", ".tmp")):
                path.unlink(missing_ok=True)
            if not match:
                continue
            try:
                yield _from_plain(json.loads(path.read_text(encoding="utf-8")), match[1])
            except (OSError, ValueError, TypeError, KeyError):
                with contextlib.suppress(OSError):
                    path.rename(path.with_name(f"{path.name}.damaged"))

    def next_id(self) -> str:
        """One more than the highest ever given, damaged records and left folders included."""
        taken = [int(match[0]) for path in self._folder.iterdir() if (match := re.match(r"\d{6,}", path.name))]
        return f"{max(taken, default=0) + 1:06d}"

    def save(self, job: Job) -> None:
        """Whole or not at all, and on the disk when this returns."""
        replace_file(self._folder / f"{job.id}.json", json.dumps(asdict(job)))

    def remove(self, job: Job) -> None:
        (self._folder / f"{job.id}.json").unlink(missing_ok=True)
        shutil.rmtree(self._folder / job.id, ignore_errors=True)

    def folder(self, job: Job) -> Path:
        """The job's own folder, made where it is missing."""
        folder = self._folder / job.id
        folder.mkdir(exist_ok=True)
        return folder

    def log_path(self, job: Job) -> Path:
        return self._folder / job.id / "log.txt"


def new_job(id: str, kind: JobKind, request: dict[str, Any], outputs: tuple[str, ...]) -> Job:
    return Job(id, kind, request, "queued", outputs=outputs, created=time.time())


def _from_plain(plain: dict[str, Any], id: str) -> Job:
    """ValueError, TypeError or KeyError where these are not the values of the job `id`."""
    job = Job(**{**plain, "progress": JobProgress(**plain["progress"])})
    if job.id != id or job.kind not in LANES or job.state not in JobState.__args__:
        raise ValueError(f"not a record of job {id}")
    return Job(**{**plain, "progress": job.progress, "outputs": tuple(job.outputs), "notes": tuple(job.notes)})
