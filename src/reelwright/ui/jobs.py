"""Jobs that outlive the page: two lanes, each first in first out, every state kept on disk.

The lane `video` makes videos with one worker process that keeps its model; the lane `training` runs command lines. They
run beside each other, so that a run can be sampled while it trains. One queue a workspace, held by a lock that the
kernel drops with its process. Children are ended by the kernel when the server dies (see processes.py); what a new
server then still finds alive it ends before it says that the job was interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from reelwright.types import UsageError, UserError
from reelwright.ui.admission import admit, problem_of
from reelwright.ui.commands import tail, trained_run
from reelwright.ui.processes import end_process
from reelwright.ui.records import Job, JobKind, JobProgress, JobState, JobStore, Lane, new_job
from reelwright.ui.requests import TrainRequest
from reelwright.ui.runners import Control, Stopped, WorkerProcess, run_command, run_video
from reelwright.ui.workspace import Workspace

__all__ = ["Job", "JobKind", "JobProgress", "JobQueue", "JobState"]

MAX_QUEUED, MAX_KEPT = 100, 500
ORPHAN_SECONDS = 30.0  # for a save that a killed server's training is in the middle of
CLOSE_SECONDS = 60.0
KILL_AGAIN_SECONDS = 5.0  # a second request to stop kills, unless it is a double click
SAVE_PROGRESS_SECONDS = 2.0

_GONE = "the page's server ended while this ran; submit it again to go on (training goes on from its last save)"
_CLOSED = "the page was closed by its server's end while this ran; submit it again to go on"
_STOPPED: dict[str, str] = {"train": "stopped; the same request goes on where it stopped"}


class JobQueue:
    """The jobs of a workspace. Thread-safe. `close` it, or the kernel ends its children with the process."""

    def __init__(self, workspace: Workspace) -> None:
        """UserError where another server has this workspace. What an earlier one left running is interrupted."""
        self.workspace = workspace
        self._lock_file = _hold(workspace.private_folder() / "lock")
        self._store = JobStore(workspace.private_folder("jobs"))
        self._changed = threading.Condition()
        self._jobs = {job.id: job for job in self._store.load()}
        self._controls: dict[str, Control] = {}
        self._saved_at: dict[str, float] = {}
        self._closing = False
        self._worker = WorkerProcess(workspace.root, workspace.private_folder() / "worker.log")
        self._recover()
        lanes: tuple[Lane, ...] = ("video", "training")
        self._threads = [threading.Thread(target=self._work, args=(lane,), daemon=True) for lane in lanes]
        for thread in self._threads:
            thread.start()

    def submit(self, kind: str, request: Mapping[str, Any]) -> Job:
        """Check the request and queue it. UsageError names every wrong field; UserError where too many wait, or where
        the run is being trained, or waits to be, already."""
        checked = admit(self.workspace, kind, request)
        outputs = (trained_run(self.workspace, checked),) if isinstance(checked, TrainRequest) else ()
        with self._changed:
            if self._closing:
                raise UserError("the server is being stopped; nothing more is queued")
            if sum(job.state == "queued" for job in self._jobs.values()) >= MAX_QUEUED:
                raise UserError(f"{MAX_QUEUED} jobs are waiting already; stop some, or wait")
            for other in self._jobs.values():
                if other.active and other.kind == kind == "train" and other.outputs == outputs:
                    doing = "is being trained" if other.state == "running" else "waits to be trained"
                    raise UserError(
                        f"{other.outputs[0]}: {doing} already, by job {other.id}; stop that one first, or wait"
                    )
            job = new_job(self._store.next_id(), cast(JobKind, kind), checked.plain(), outputs)
            try:
                self._store.save(job)
            except OSError as error:
                raise UserError(f"the job cannot be recorded ({error.strerror}); is the disk full?") from None
            self._jobs[job.id] = job
            self._forget_oldest()
            self._changed.notify_all()
        return job

    def get(self, id: str) -> Job:
        """UsageError where there is no such job."""
        with self._changed:
            if not isinstance(id, str) or id not in self._jobs:
                raise UsageError(f"job {ascii(id)[:40]}: there is none of this number")
            return self._jobs[id]

    def list(self) -> list[Job]:
        """Newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: int(job.id), reverse=True)

    def stop(self, id: str) -> Job:
        """Stop a job: one that waits never starts; a video ends between two steps; training saves first.

        Asked again after some seconds, a running one is killed (training then goes on from its last save). A job that
        has ended stays as it is.
        """
        with self._changed:
            job = self.get(id)
            if job.state == "queued":
                return self._update(id, state="stopped", ended=time.time(), error="stopped before it began")
            control = self._controls.get(id)
            if job.state == "running" and control is not None:
                if control.stop.is_set() and time.monotonic() - control.stop_asked > KILL_AGAIN_SECONDS:
                    control.kill.set()
                self._ask_to_stop(control)
            return job

    def log(self, id: str, max_bytes: int = 20_000) -> str:
        """The end of what a job of the training lane printed."""
        return tail(self._store.log_path(self.get(id)), max_bytes)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Stop what runs (training saves; past the time-out it is killed) and end every child. Waiting jobs stay."""
        with self._changed:
            self._closing = True
            for control in self._controls.values():
                self._ask_to_stop(control)
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for control in list(self._controls.values()):
            control.kill.set()
        for thread in self._threads:
            thread.join()
        self._worker.close()
        os.close(self._lock_file)

    # The lanes

    def _work(self, lane: Lane) -> None:
        while (job := self._next(lane)) is not None:
            control = self._controls[job.id]
            state, error, fields = "done", "", {}
            try:
                if lane == "video":
                    result = run_video(self.workspace, job, self._worker, control)
                else:
                    log_path = self._store.log_path(job)
                    result = run_command(self.workspace, job, self._store.folder(job), log_path, control)
                fields = {"outputs": result.outputs, "notes": result.notes}
            except Stopped:
                state, error = ("interrupted", _CLOSED) if self._closing else ("stopped", _STOPPED.get(job.kind, ""))
            except Exception as failure:  # one job fails, the lane goes on
                state, error = "failed", problem_of(failure)
            with self._changed:
                del self._controls[job.id]
                self._update(job.id, state=state, error=error, ended=time.time(), process="", **fields)

    def _next(self, lane: Lane) -> Job | None:
        """The oldest waiting job of the lane, marked as running; None when the queue is closed."""
        with self._changed:
            while not self._closing:
                waiting = [job for job in self._jobs.values() if job.state == "queued" and job.lane == lane]
                if waiting:
                    id = min(waiting, key=lambda job: int(job.id)).id
                    self._controls[id] = Control(update=functools.partial(self._update, id))
                    return self._update(id, state="running", started=time.time())
                self._changed.wait()
        return None

    def _update(self, id: str, **fields: Any) -> Job:
        """Change a job, on disk as well; progress alone is written every few seconds."""
        with self._changed:
            before = self._jobs[id]
            job = self._jobs[id] = replace(before, **fields)
            now = time.monotonic()
            progress_alone = set(fields) == {"progress"}
            if job != before and not (progress_alone and now - self._saved_at.get(id, 0.0) < SAVE_PROGRESS_SECONDS):
                with contextlib.suppress(OSError):  # a full disk: what is known here stays true, and jobs go on
                    self._store.save(job)
                self._saved_at[id] = now
            return job

    def _ask_to_stop(self, control: Control) -> None:
        if not control.stop.is_set():
            control.stop_asked = time.monotonic()
            control.stop.set()

    def _recover(self) -> None:
        """What an earlier server left as running is ended, if it is not yet, and called interrupted."""
        for job in list(self._jobs.values()):
            if job.state == "running":
                killed = end_process(job.process, ORPHAN_SECONDS if job.kind == "train" else 0.0)
                error = _GONE + ("; its process had to be killed" if killed else "")
                self._update(job.id, state="interrupted", error=error, ended=time.time(), process="")

    def _forget_oldest(self) -> None:
        ended = sorted((job for job in self._jobs.values() if not job.active), key=lambda job: int(job.id))
        for job in ended[: max(0, len(self._jobs) - MAX_KEPT)]:
            del self._jobs[job.id]
            self._store.remove(job)


def _hold(path: Path) -> int:
    """A descriptor that holds the lock; the kernel drops it with the process. UserError where another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 100).decode("utf-8", "replace").strip()
        os.close(descriptor)
        raise UserError(
            f"{path.parent.parent}: the page is open on this workspace already ({holder or 'by another process'}); "
            "use that one, or stop it first"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()}\n".encode())
    return descriptor
