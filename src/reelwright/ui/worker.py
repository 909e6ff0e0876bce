"""`python -m reelwright.ui.worker`: one process that makes videos and keeps the last model it loaded.

A JSON object a line on standard input: {"id", "kind", "model", "out", "request"}, or {"cancel": id}. On standard output
the same way: {"id", "progress": [done, total, text]}, then {"id", "outputs", "notes"} or {"id", "error"}, with
"stopped": true where it was cancelled. Nothing else reaches that stream: whatever is printed goes to standard error.
When standard input ends, so does the process, at once.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from reelwright.types import UsageError, UserError
from reelwright.ui.requests import MAX_VIDEO_NUMBERS

if TYPE_CHECKING:
    from reelwright.loading import LoadedModel

ModelKey = tuple[str, str | None, bool]
OnStep = Callable[[int, int], None]


class Cancelled(Exception):
    """The job was stopped between two steps."""


class ModelKeeper:
    """The last model loaded, for as long as its files are what they were."""

    def __init__(self) -> None:
        self._key: ModelKey | None = None
        self._print: object = None
        self._model: LoadedModel | None = None

    def get(self, key: ModelKey) -> LoadedModel:
        """The model of (path, checkpoint, raw); the one held before is let go first, as two may not fit."""
        print_ = fingerprint(Path(key[0]))
        if self._model is None or (key, print_) != (self._key, self._print):
            self.drop()
            from reelwright.loading import load_model

            self._model = load_model(*key)
            self._key, self._print = key, print_
        return self._model

    def drop(self) -> None:
        self._model = self._key = self._print = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def fingerprint(model: Path) -> tuple[tuple[str, int, int, int], ...]:
    """(name, inode, bytes, mtime) of every file a model is loaded from; of a run, not its logs and samples."""
    if model.is_file():
        return (_facts(model),)
    is_run = (model / "checkpoints").is_dir()
    roots = [model / "checkpoints"] if is_run else [model]
    files = [path for root in roots for path in _files(root)]
    if is_run:
        files.append(model / "recipe.yaml")
    return tuple(sorted(_facts(path) for path in files))


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]  # a checkpoint being written
        yield from (Path(folder) / name for name in names)


def _facts(path: Path) -> tuple[str, int, int, int]:
    try:
        facts = path.stat()
    except OSError:  # pruned by a training run just now
        return (str(path), 0, 0, 0)
    return (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns)


@dataclass(frozen=True)
class Task:
    """One request, and how to tell of its progress."""

    kind: str
    model: LoadedModel
    request: Mapping[str, Any]
    out: Path
    on_step: OnStep


def generate(task: Task) -> tuple[list[Path], list[str]]:
    """The files made and the warnings to show."""
    from reelwright.generate import Compute, Request, cut_prompts, run_generate

    asked = task.request
    same = ("num_videos", "seed", "negative_prompt", "sampler", "steps", "guidance", "frames", "width", "height", "fps")
    request = Request((asked["prompt"],), **{name: asked[name] for name in same})
    size = request.size(task.model)
    if size.frames * size.height * size.width > MAX_VIDEO_NUMBERS:
        raise UsageError(f"a video of {size} (frames x height x width): over {MAX_VIDEO_NUMBERS} pixels; ask for less")
    compute = Compute.resolve(asked["device"], asked["precision"], asked["offload"])
    notes = cut_prompts(task.model.bundle, [asked["prompt"], asked["negative_prompt"]])
    made = run_generate(task.model, request, task.out, asked["format"], compute, task.on_step, say=notes.append)
    return made, notes


def refine(task: Task) -> tuple[list[Path], list[str]]:
    """A video denoised from `strength` on."""
    from reelwright.generate import Compute, Request, cut_prompts
    from reelwright.refine import run_refine

    asked, notes = task.request, cut_prompts(task.model.bundle, [task.request["prompt"]])
    same = ("seed", "negative_prompt", "sampler", "steps", "guidance")
    request = Request((asked["prompt"],), **{name: asked[name] for name in same})
    compute = Compute.resolve(asked["device"], asked["precision"], asked["offload"])
    outcome = run_refine(
        task.model, Path(asked["video"]), task.out, request, asked["strength"], asked["already_noisy"], compute,
        task.on_step, notes.append,
    )  # fmt: skip
    return [outcome.path], notes


def noise(task: Task) -> tuple[list[Path], list[str]]:
    """A video as it looks at `strength`."""
    from reelwright.generate import Compute
    from reelwright.refine import run_noise

    asked, notes = task.request, []
    compute = Compute.resolve(asked["device"], asked["precision"], asked["offload"])
    source = Path(asked["video"])
    outcome = run_noise(
        task.model, source, task.out, asked["strength"], asked["seed"], compute, task.on_step, notes.append
    )
    return [outcome.path], notes


VERBS: dict[str, Callable[[Task], tuple[list[Path], list[str]]]] = {
    "generate": generate,
    "refine": refine,
    "noise": noise,
}


class Worker:
    """Requests in, answers out, one at a time."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._keeper = ModelKeeper()
        self._cancelled: set[str] = set()
        self.pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen(self, requests: TextIO) -> None:
        """Read until the other side is gone; then end, whatever is being done."""
        for line in requests:
            message = json.loads(line)
            if "cancel" in message:
                self._cancelled.add(message["cancel"])
            else:
                self.pending.put(message)
        os._exit(0)

    def do(self, message: dict[str, Any]) -> None:
        """One request to its answer; only what kills the process is not answered."""
        id = message["id"]
        try:
            outputs, notes = self._make(id, message)
            self._answer(id, outputs=[str(path) for path in outputs], notes=notes)
        except Cancelled:
            self._answer(id, error="stopped", stopped=True)
        except UserError as error:
            self._answer(id, error=str(error))
        except Exception as error:
            traceback.print_exc()
            self._keeper.drop()  # what is left of it may hold the memory that was missing
            self._answer(id, error=f"{type(error).__name__}: {error} (an unexpected failure)")

    def _make(self, id: str, message: dict[str, Any]) -> tuple[list[Path], list[str]]:
        request = message["request"]

        def on_step(done: int, total: int, text: str = "sampling") -> None:
            if id in self._cancelled:
                raise Cancelled
            self._answer(id, progress=[done, total, text])

        on_step(0, 0, "loading the model")
        model = self._keeper.get((message["model"], request["checkpoint"], request["raw"]))
        on_step(0, 0, "starting")
        task = Task(message["kind"], model, request, Path(message["out"]), on_step)
        outputs, notes = VERBS[message["kind"]](task)
        return outputs, [*model.warnings, *notes]

    def _answer(self, id: str, **values: Any) -> None:
        self._answers.write(json.dumps({"id": id, **values}) + "\n")
        self._answers.flush()


def main() -> None:
    """Serve until standard input ends."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # a library that prints must not speak into the answers
    worker = Worker(answers)
    threading.Thread(target=worker.listen, args=(requests,), daemon=True).start()
    while True:
        worker.do(worker.pending.get())


if __name__ == "__main__":
    main()
