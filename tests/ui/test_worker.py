"""The worker by its streams alone: JSON lines in, JSON lines out, nothing else, and no life of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reelwright.ui import worker as worker_module
from reelwright.ui.processes import identity_of, start_child
from reelwright.ui.requests import GenerateRequest
from reelwright.ui.worker import ModelKeeper, Task, Worker, fingerprint
from reelwright.video.write import read_recipe


def message(run: Path, out: Path, id: str = "1", **request: Any) -> dict[str, Any]:
    asked = GenerateRequest.parse({"model": "m", "prompt": "a red circle", **request}).plain()
    return {"id": id, "kind": "generate", "model": str(run), "out": str(out), "request": asked}


def answers_to(worker_input: str, code: str = "", seconds: float = 120) -> tuple[list[dict[str, Any]], str, int]:
    """What a fresh worker answers to these lines until each has its end; what it printed elsewhere; its exit code."""
    setup = f"import os, reelwright.ui.worker as w\n{code}\nw.main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", setup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(worker_input)
    process.stdin.flush()
    wanted = sum('"kind"' in line for line in worker_input.splitlines())
    answers: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    while wanted and time.monotonic() < deadline and (line := process.stdout.readline()):
        answers.append(json.loads(line))
        wanted -= "progress" not in answers[-1]
    process.stdin.close()
    code_ = process.wait(timeout=30)
    rest, printed = process.stdout.read(), process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert rest == ""
    return answers, printed, code_


def test_progress_result_error_and_nothing_else(trained_run: Path, tmp_path: Path) -> None:
    noisy = (
        "make = w.VERBS['generate']\n"
        "def noisy(task):\n"
        "    print('from python'); os.write(1, b'from below\\n'); os.system('echo from a child')\n"
        "    return make(task)\n"
        "w.VERBS['generate'] = noisy"
    )
    prompt = 'a "red"\n<script> \u2028 \x07'
    lines = [message(trained_run, tmp_path / "a.mp4", "1", prompt=prompt), message(tmp_path, tmp_path / "b.mp4", "2")]
    answers, printed, code = answers_to("".join(json.dumps(line) + "\n" for line in lines), noisy)
    assert code == 0
    first = [answer for answer in answers if answer["id"] == "1"]
    steps = [answer["progress"] for answer in first if "progress" in answer]
    assert steps[0] == [0, 0, "loading the model"] and steps[-1] == [3, 3, "sampling"]
    assert first[-1]["outputs"] == [str(tmp_path / "a.mp4")]
    assert read_recipe(tmp_path / "a.mp4")["prompt"] == prompt
    assert answers[-1]["id"] == "2" and "not a model" in answers[-1]["error"] and "stopped" not in answers[-1]
    assert "from python" in printed and "from below" in printed and "from a child" in printed


def test_it_ends_with_its_input_even_in_the_middle(trained_run: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "reelwright.ui.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(message(trained_run, tmp_path / "a.mp4", steps=1000, sampler="heun")) + "\n")
    process.stdin.flush()
    while json.loads(process.stdout.readline())["progress"][0] < 1:
        pass
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    process.stdout.close()
    assert not (tmp_path / "a.mp4").exists()


class Lines(io.StringIO):
    """Answers kept as objects; `on_progress(done)` is called in between, as another thread would act."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[dict[str, Any]] = []
        self.on_progress: Any = lambda done: None

    def write(self, text: str) -> int:
        self.answers.append(json.loads(text))
        if "progress" in self.answers[-1]:
            self.on_progress(self.answers[-1]["progress"][0])
        return len(text)


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_cancelled_between_two_steps(trained_run: Path, tmp_path: Path, lines: Lines) -> None:
    worker = Worker(lines)
    lines.on_progress = lambda done: worker._cancelled.add("1") if done == 5 else None
    worker.do(message(trained_run, tmp_path / "a.mp4", steps=50))
    assert lines.answers[-1] == {"id": "1", "error": "stopped", "stopped": True}
    assert lines.answers[-2]["progress"] == [5, 50, "sampling"] and not list(tmp_path.iterdir())
    worker.do(message(trained_run, tmp_path / "b.mp4", "2"))
    assert lines.answers[-1]["outputs"] == [str(tmp_path / "b.mp4")]


def test_cancelled_before_it_began(trained_run: Path, tmp_path: Path, lines: Lines) -> None:
    worker = Worker(lines)
    worker._cancelled.add("1")
    worker.do(message(trained_run, tmp_path / "a.mp4"))
    assert lines.answers == [{"id": "1", "error": "stopped", "stopped": True}]


def test_an_unexpected_failure_is_one_message(
    trained_run: Path, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(task: Task) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(worker_module.VERBS, "generate", fail)
    worker = Worker(lines)
    worker.do(message(trained_run, tmp_path / "a.mp4"))
    assert lines.answers[-1]["error"].startswith("RuntimeError: DefaultCPUAllocator")
    assert "Traceback" not in lines.answers[-1]["error"] and "Traceback" in capsys.readouterr().err
    assert worker._keeper._model is None


def test_a_video_too_large_by_the_models_own_sizes(
    trained_run: Path, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_VIDEO_NUMBERS", 8 * 32 * 32)
    worker = Worker(lines)
    worker.do(message(trained_run, tmp_path / "a.mp4"))
    worker.do(message(trained_run, tmp_path / "b.mp4", frames=12))
    assert any("outputs" in answer for answer in lines.answers)
    assert "a video of 12x32x32" in lines.answers[-1]["error"] and not (tmp_path / "b.mp4").exists()


def test_the_model_is_kept_until_another_is_asked_for_or_its_files_change(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reelwright.loading

    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    loads: list[tuple[Any, ...]] = []
    load = reelwright.loading.load_model
    monkeypatch.setattr(reelwright.loading, "load_model", lambda *key: loads.append(key) or load(*key))
    keeper = ModelKeeper()
    first = keeper.get((str(run), None, False))
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    (run / "checkpoints" / ".writing-step-0000012").mkdir()
    assert keeper.get((str(run), None, False)) is first and len(loads) == 1
    assert keeper.get((str(run), "4", False)).step == 4 and len(loads) == 2
    keeper.get((str(run), None, True))
    newest = keeper.get((str(run), None, False))
    assert len(loads) == 4 and newest.step == 8
    shutil.rmtree(run / "checkpoints" / "step-0000008")
    assert keeper.get((str(run), None, False)).step == 4 and len(loads) == 5


def test_fingerprint_of_an_exported_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "denoiser").mkdir()
    weights = tmp_path / "denoiser" / "model.safetensors"
    weights.write_bytes(b"1")
    folder, file = fingerprint(tmp_path), fingerprint(weights)
    weights.write_bytes(b"22")
    assert fingerprint(tmp_path) != folder and fingerprint(weights) != file
    assert fingerprint(tmp_path / "none") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the children on Linux alone")
def test_a_child_is_told_of_its_parents_death(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "from reelwright.ui.processes import start_child\n"
        "child = start_child('http.server', ['0', '--bind', '127.0.0.1'], signal.SIGKILL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    identity = identity_of(int(parent.stdout.readline()))
    assert identity
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while identity_of(int(identity.split()[0])) == identity and time.monotonic() < deadline:
        time.sleep(0.02)
    assert identity_of(int(identity.split()[0])) != identity


def test_a_child_can_be_interrupted_though_its_parent_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what it puts into the background
    try:
        child = start_child("http.server", ["0", "--bind", "127.0.0.1"], signal.SIGKILL, stderr=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, bufsize=1)  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 20
    while child.poll() is None and time.monotonic() < deadline:
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert child.poll() is not None
    child.communicate()
