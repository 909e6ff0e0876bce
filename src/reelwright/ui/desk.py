"""What all tabs work with: the workspace, its jobs, and listings that are not read anew at every tick."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import gradio as gr

from reelwright.types import UserError
from reelwright.ui.fragments import notice
from reelwright.ui.jobs import Job, JobQueue
from reelwright.ui.workspace import DataEntry, ModelEntry, OutputEntry, RecipeEntry, Workspace

Seen = dict[str, Any]  # what one open page shows, by part: see `Desk.when_changed`
T = TypeVar("T")

MIN_LISTING_SECONDS, LISTING_SHARE = 2.0, 0.05  # at most this share of the time goes into reading the workspace
MAX_OUTPUTS = 200


class Desk:
    """One for the server; every method may be called from any thread."""

    def __init__(self, workspace: Workspace, queue: JobQueue) -> None:
        self.workspace = workspace
        self.queue = queue
        self._lock = threading.Lock()
        self._listed: dict[str, tuple[float, Any]] = {}  # name -> (monotonic time it is good until, listing)
        self._ended: tuple[str, ...] = ()

    def models(self) -> list[ModelEntry]:
        """Those that can be used."""
        return [entry for entry in self._listing("models", self.workspace.models) if not entry.problem]

    def runs(self) -> list[str]:
        """Names of run directories, the last changed first, and of those that jobs are about to make."""
        found = [entry.name for entry in self._listing("models", self.workspace.models) if entry.kind == "run"]
        begun = [job.outputs[0] for job in self.queue.list() if job.kind == "train" and job.outputs and job.active]
        return list(dict.fromkeys([*begun, *found]))

    def recipes(self) -> list[RecipeEntry]:
        return self._listing("recipes", self.workspace.recipes)

    def data_folders(self) -> list[DataEntry]:
        return self._listing("data", self.workspace.data_folders)

    def outputs(self) -> list[OutputEntry]:
        return self._listing("outputs", lambda: self.workspace.outputs(MAX_OUTPUTS))

    def output(self, name: str) -> OutputEntry | None:
        """The made video of this name, if there is one."""
        return next((entry for entry in self.workspace.outputs(MAX_OUTPUTS) if entry.name == name), None)

    def latest(self, *kinds: str, **request: Any) -> Job | None:
        """The newest job of these kinds whose request holds these values; one that is active comes first."""
        fitting = [
            job
            for job in self.queue.list()
            if job.kind in kinds and all(job.request.get(key) == value for key, value in request.items())
        ]
        running = [job for job in fitting if job.state == "running"]
        return next(iter([*running, *fitting]), None)

    def told(self, job: Job) -> Job:
        """The job with the workspace's own names in its messages, where commands speak of whole paths."""
        root = f"{self.workspace.root}/"
        return replace(
            job, error=job.error.replace(root, ""), notes=tuple(note.replace(root, "") for note in job.notes)
        )

    def submit(self, kind: str, request: dict[str, Any]) -> tuple[Job | None, str]:
        """(the job, '') or (None, the one message of what is wrong)."""
        try:
            return self.queue.submit(kind, request), ""
        except UserError as error:
            return None, str(error)

    def submitted(self, kind: str, request: dict[str, Any], good: str) -> str:
        """Submit, and the notice that tells how that went."""
        _, problem = self.submit(kind, request)
        return notice(problem, "bad") if problem else notice(good, "good")

    @staticmethod
    def when_changed(seen: Seen, part: str, now: Any, make: Callable[[], Any]) -> Any:
        """`make()` where the part's signature is not the one this page saw last; else leave it as it is."""
        if part in seen and seen[part] == now:
            return gr.skip()
        seen[part] = now
        return make()

    def _listing(self, name: str, read: Callable[[], list[T]]) -> list[T]:
        """Kept for a while, the longer the slower it was to read; read anew once a job has ended."""
        with self._lock:
            ended = tuple(job.id + job.state for job in self.queue.list() if not job.active)
            if ended != self._ended:
                self._listed.clear()
                self._ended = ended
            good_until, listing = self._listed.get(name, (0.0, []))
            began = time.monotonic()
            if began >= good_until:
                listing = read()
                now = time.monotonic()
                self._listed[name] = (now + max(MIN_LISTING_SECONDS, (now - began) / LISTING_SHARE), listing)
            return listing
