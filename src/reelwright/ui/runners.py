"""How a job is done: a request to the worker that keeps its model, or a command line with its output in a log."""

from __future__ import annotations

import json
import math
import queue
import re
import signal
import subprocess
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelwright.children import POLL_SECONDS, kill_group, watch
from reelwright.signals import INTERRUPTED, interrupts_held
from reelwright.types import UserError
from reelwright.ui.admission import admit_model
from reelwright.ui.commands import command_for, final_message, read_progress, tail
from reelwright.ui.processes import identity_of, start_child
from reelwright.ui.records import Job, JobProgress
from reelwright.ui.workspace import Workspace

STOP_SECONDS = 20.0  # after which a job that was asked to stop is killed; training only when asked again


class Stopped(Exception):
    """The job ended because it was asked to."""


@dataclass
class Control:
    """What a running job is told and tells."""

    update: Callable[..., Any]  # with fields of Job
    stop: threading.Event = field(default_factory=threading.Event)
    stop_asked: float = 0.0  # time.monotonic() of the first request to stop
    kill: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Result:
    """What a job left, named relative to the workspace's root."""

    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def run_command(workspace: Workspace, job: Job, folder: Path, log_path: Path, control: Control) -> Result:
    """`reelwright ...` to its end. Stopped where it ended by our SIGINT, UserError with its message where it failed."""
    command = command_for(workspace, job, folder)
    control.update(outputs=command.outputs)
    answer = folder / (command.answer or log_path.name)
    with log_path.open("ab") as log, answer.open("ab") as out, interrupts_held():
        if command.answer:
            out.truncate(0)
        process = start_child(
            "reelwright", command.arguments, signal.SIGTERM,
            cwd=workspace.root, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
        )  # fmt: skip
    control.update(process=identity_of(process.pid))
    watch(
        process,
        lambda: control.update(progress=read_progress(command, log_path)),
        control.stop.is_set,
        control.kill.is_set,
        grace_seconds=math.inf if job.kind == "train" else STOP_SECONDS,
    )
    control.update(progress=read_progress(command, log_path))
    code = process.returncode
    if control.stop.is_set() and (code == INTERRUPTED or code < 0):
        raise Stopped
    if code != 0:
        raise UserError(final_message(log_path, code))
    said = tail(log_path).strip().rpartition("\n")[2] if job.kind == "prepare" else ""
    return Result(command.outputs, (said,) if said else ())


class WorkerProcess:
    """The one worker of a queue: started when first needed, started anew after it died."""

    def __init__(self, root: Path, log_path: Path) -> None:
        self._root = root
        self._log_path = log_path
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def run(self, message: dict[str, Any], control: Control) -> dict[str, Any]:
        """The worker's answer to one request. UserError: its message, or that it died. Stopped: it was asked to."""
        process = self._ready()
        control.update(process=identity_of(process.pid))
        self._send(process, message)
        asked = False
        while True:
            if control.stop.is_set():
                if not asked:
                    self._send(process, {"cancel": message["id"]})
                    asked = True
                if control.kill.is_set() or time.monotonic() - control.stop_asked > STOP_SECONDS:
                    self.close()
                    raise Stopped
            try:
                answer = self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if answer is None:
                raise UserError(self._death(process))
            if answer.get("id") != message["id"]:
                continue
            if "progress" in answer:
                control.update(progress=JobProgress(*answer["progress"]))
            elif answer.get("stopped"):
                raise Stopped
            elif "error" in answer:
                raise UserError(answer["error"])
            else:
                return answer

    def close(self) -> None:
        """Kill it; the next request starts another."""
        if self._process is not None:
            kill_group(self._process.pid)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _ready(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._answers = queue.SimpleQueue()
        with self._log_path.open("wb") as log:
            self._process = start_child(
                "reelwright.ui.worker", [], signal.SIGKILL, cwd=self._root, text=True, encoding="utf-8",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        threading.Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True).start()
        return self._process

    def _send(self, process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it died: the end of its answers says so

    def _death(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        self.close()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; the memory may have been full: a smaller or shorter video needs less" if code == -9 else ""
        return f"the process that makes videos {how}{hint}. The next job starts a new one (log: {self._log_path.name})"


def _read_answers(stream: Any, answers: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    try:
        for line in stream:
            answers.put(json.loads(line))
    except ValueError:  # cut off in mid-line, or closed under us
        pass
    answers.put(None)


def run_video(workspace: Workspace, job: Job, worker: WorkerProcess, control: Control) -> Result:
    """A job of the video lane by the worker, into outputs/ under a new name."""
    request = dict(job.request)
    model = admit_model(workspace, request["model"])
    if "video" in request:
        request["video"] = str(workspace.resolve(request["video"], "video", "video"))
    out = _new_output(workspace, job)
    message = {"id": job.id, "kind": job.kind, "model": str(model), "out": str(out), "request": request}
    answer = worker.run(message, control)
    return Result(tuple(workspace.relative(Path(path)) for path in answer["outputs"]), tuple(answer["notes"]))


def _new_output(workspace: Workspace, job: Job) -> Path:
    """outputs/NUMBER-words.mp4, a name that no file begins with yet."""
    folder = workspace.made_folder("outputs")
    prompt = unicodedata.normalize("NFKD", str(job.request.get("prompt") or job.kind))
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:50].strip("-") or job.kind
    stem, number = f"{job.id}-{words}", 1
    while any(folder.glob(f"{stem}*")):
        number += 1
        stem = f"{job.id}-{words}-{number}"
    return folder / f"{stem}.{job.request.get('format', 'mp4')}"
