"""Jobs from the request to the file, through kills of worker and server, and back from disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reelwright.training.checkpoint import newest_valid
from reelwright.types import UsageError, UserError
from reelwright.ui import jobs as jobs_module
from reelwright.ui.jobs import Job, JobQueue
from reelwright.ui.processes import identity_of
from reelwright.ui.workspace import Workspace
from reelwright.video.write import read_frames, read_recipe

LONG = {"model": "runs/first", "prompt": "a red circle", "steps": 1000, "sampler": "heun"}
SHORT = {"model": "runs/first", "prompt": "a red circle"}
NASTY = "<script>alert(1)</script>\n\"quoted\" 'x'\t\x07\u2028 $(touch x) `touch x` --out=/etc \u202e\U0001f600"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def queue(full_workspace: Workspace) -> Iterator[JobQueue]:
    queue = JobQueue(full_workspace)
    yield queue
    queue.close()


def alive(identity: str) -> bool:
    return bool(identity) and identity_of(int(identity.split()[0])) == identity


def gone(identity: str, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(identity) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(identity)


def record(workspace: Workspace, id: str) -> dict:
    return json.loads((workspace.root / ".reelwright" / "jobs" / f"{id}.json").read_text())


def test_videos_are_made_and_the_model_is_kept(queue, wait) -> None:
    first = queue.submit("generate", {**SHORT, "prompt": NASTY, "seed": 3})
    second = queue.submit("generate", {**SHORT, "num_videos": 2, "format": "gif"})
    assert [job.id for job in queue.list()] == [second.id, first.id]
    assert [job.state for job in queue.list()][0] == "queued"
    done = wait(queue, first.id, lambda job: job.state == "done")
    (name,) = done.outputs
    recipe = read_recipe(queue.workspace.resolve(name, "video"))
    assert recipe["prompt"] == NASTY == done.request["prompt"] and recipe["seed"] == 3
    assert name.isascii() and read_frames(queue.workspace.root / name)[0].shape == (8, 32, 32, 3)
    assert done.progress.done == done.progress.total == 3 and done.created <= done.started <= done.ended
    assert not (queue.workspace.root / "x").exists()
    worker = queue._worker._process.pid
    both = wait(queue, second.id)
    assert both.state == "done" and [Path(name).suffix for name in both.outputs] == [".gif", ".gif", ".png"]
    assert queue._worker._process.pid == worker
    assert record(queue.workspace, first.id)["state"] == "done" and record(queue.workspace, first.id)["process"] == ""


def test_a_stopped_video_and_one_that_waited(queue, wait) -> None:
    running, waiting, last = (queue.submit("generate", r) for r in (LONG, SHORT, SHORT))
    wait(queue, running.id, lambda job: job.progress.done >= 2)
    assert queue.get(waiting.id).state == "queued"
    assert queue.stop(waiting.id).state == "stopped"
    started = time.monotonic()
    queue.stop(running.id)
    assert wait(queue, running.id).state == "stopped" and time.monotonic() - started < jobs_module.ORPHAN_SECONDS
    assert wait(queue, last.id).state == "done"
    stopped = queue.get(waiting.id)
    assert stopped.started is None and "before it began" in stopped.error
    assert queue.stop(last.id).state == "done"  # what has ended stays as it is


def test_a_killed_worker_fails_one_job(queue, wait) -> None:
    running, after = queue.submit("generate", LONG), queue.submit("generate", SHORT)
    identity = wait(queue, running.id, lambda job: job.progress.done >= 1).process
    os.kill(int(identity.split()[0]), signal.SIGKILL)
    failed = wait(queue, running.id)
    assert failed.state == "failed" and "killed by signal 9" in failed.error and "Traceback" not in failed.error
    assert wait(queue, after.id).state == "done"


@pytest.mark.full
def test_training_runs_beside_videos_stops_and_goes_on(queue, wait) -> None:
    training = queue.submit("train", {"recipe": "recipe.yaml", "changes": {"train.save_every": 20}})
    behind = queue.submit("inspect", {"data": "data", "frames": 8, "width": 32, "height": 32})
    run = queue.workspace.root / "runs" / "new"
    wait(queue, training.id, lambda job: job.progress.total == 100000 and newest_valid(run / "checkpoints") is not None)
    sample = wait(queue, queue.submit("generate", {**SHORT, "model": "runs/new"}).id)
    assert sample.state == "done"
    assert queue.get(training.id).state == "running" and queue.get(behind.id).state == "queued"
    assert queue.get(training.id).outputs == ("runs/new",)
    queue.stop(training.id)
    stopped = wait(queue, training.id)
    assert stopped.state == "stopped" and "goes on" in stopped.error
    saved = newest_valid(run / "checkpoints")
    assert saved is not None
    step = int(saved.name.removeprefix("step-"))
    assert f"stopped by SIGINT at step {step}" in queue.log(training.id)
    inspected = wait(queue, behind.id)
    facts = json.loads((queue.workspace.root / inspected.outputs[1]).read_text())
    assert inspected.state == "done" and facts["counts"] and (queue.workspace.root / inspected.outputs[0]).is_file()
    changes = {"train.save_every": 20, "train.steps": step + 3}
    again = queue.submit("train", {"recipe": "recipe.yaml", "changes": changes})
    done = wait(queue, again.id)
    assert done.state == "done" and f"resuming from {saved.name}" in queue.log(again.id)
    assert done.progress.done == step + 3


def test_a_run_is_trained_once_at_a_time(queue, wait) -> None:
    first = queue.submit("train", {"recipe": "recipe.yaml"})
    wait(queue, first.id, lambda job: job.state == "running")
    with pytest.raises(UserError, match="runs/new: is being trained already, by job 000001; stop that one first"):
        queue.submit("train", {"recipe": "recipe.yaml", "changes": {"train.steps": 5}})
    other = queue.submit("train", {"recipe": "recipe.yaml", "changes": {"run_dir": "runs/other"}})
    assert (queue.get(other.id).state, queue.get(other.id).outputs) == ("queued", ("runs/other",))
    whole = str(queue.workspace.root / "runs" / "other")
    for again in ({"changes": {"run_dir": whole}}, {"fork": "runs/other"}):
        with pytest.raises(UserError, match=f"runs/other: waits to be trained already, by job {other.id}"):
            queue.submit("train", {"recipe": "recipe.yaml", **again})
    assert [job.id for job in queue.list()] == [other.id, first.id]
    assert queue.submit("prepare", {"recipe": "recipe.yaml"}).outputs == (), "what harms nobody may wait twice"
    for job in queue.list():
        queue.stop(job.id)
    assert wait(queue, first.id).state == "stopped"
    again = queue.submit("train", {"recipe": "recipe.yaml"})
    wait(queue, again.id, lambda job: job.process)
    queue.stop(again.id)
    assert wait(queue, again.id).state == "stopped", "however early it was asked to"
    assert "Traceback" not in queue.log(again.id)


def test_preparing_ends_with_what_it_said(queue, wait) -> None:
    done = wait(queue, queue.submit("prepare", {"recipe": "recipe.yaml"}).id)
    (said,) = done.notes
    assert done.state == "done" and said and said == queue.log(done.id).strip().split("\n")[-1]


def test_a_command_that_fails_says_why(queue, wait) -> None:
    shutil.rmtree(queue.workspace.root / "data" / "videos")
    (queue.workspace.root / "data" / "videos").mkdir()
    failed = wait(queue, queue.submit("prepare", {"recipe": "recipe.yaml"}).id)
    assert failed.state == "failed" and failed.error and "Traceback" not in failed.error
    assert not failed.error.startswith("reelwright:")
    unknown = wait(queue, queue.submit("evaluate", {"model": "data", "metrics": "magic"}).id)
    assert unknown.state == "failed" and "magic" in unknown.error


def test_refined_and_noised(queue, wait) -> None:
    given = {"model": "runs/first", "video": "clip.mp4", "strength": 0.5}
    for kind, request in (("refine", {**given, "prompt": NASTY + "\0", "steps": 4}), ("noise", given)):
        done = wait(queue, queue.submit(kind, request).id)
        assert done.state == "done", done.error
        path = queue.workspace.root / done.outputs[0]
        frames, fps = read_frames(path)
        assert frames.shape == (8, 32, 32, 3) and fps == 8 and any("8 frames of 32x32" in note for note in done.notes)
        recipe = read_recipe(path)
        assert recipe["command"] == kind and recipe.get("prompt") == request.get("prompt") and recipe["strength"] == 0.5
    assert len(queue.workspace.outputs()) == 2


def test_what_changed_while_a_job_waited_is_seen(queue, wait, tmp_path) -> None:
    running, waiting = queue.submit("generate", LONG), queue.submit("generate", {**SHORT, "model": "runs/first"})
    wait(queue, running.id, lambda job: job.progress.done >= 1)
    run = queue.workspace.root / "runs" / "first"
    run.rename(tmp_path / "moved")
    run.symlink_to(tmp_path / "moved")
    queue.stop(running.id)
    failed = wait(queue, waiting.id)
    assert failed.state == "failed" and "leads out of the workspace" in failed.error


SERVER = """
import sys, time
from pathlib import Path
from reelwright.ui.jobs import JobQueue
from reelwright.ui.workspace import Workspace
queue = JobQueue(Workspace(Path(sys.argv[1])))
long = {"model": "runs/first", "prompt": "p", "steps": 1000, "sampler": "heun"}
queue.submit("train", {"recipe": "recipe.yaml"})
queue.submit("generate", long)
queue.submit("generate", {"model": "runs/first", "prompt": "the one that waited"})
print("ready", flush=True)
time.sleep(600)
"""


def serve(root: Path) -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(root)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return server


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the children on Linux alone")
def test_a_killed_server_takes_its_children_and_the_list_stays_true(full_workspace, wait) -> None:
    root = full_workspace.root
    server = serve(root)
    try:
        with pytest.raises(UserError, match=f"open on this workspace already .process {server.pid}"):
            JobQueue(full_workspace)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            training, video = record(full_workspace, "000001"), record(full_workspace, "000002")
            if training["progress"]["done"] >= 2 and video["progress"]["done"] >= 1:
                break
            time.sleep(0.05)
        assert alive(training["process"]) and alive(video["process"]) and training["process"] != video["process"]
        assert record(full_workspace, "000003")["state"] == "queued"
    finally:
        server.kill()
        server.communicate()
    assert gone(video["process"]) and gone(training["process"])
    assert newest_valid(root / "runs" / "new" / "checkpoints") is not None  # it saved before it went
    queue = JobQueue(full_workspace)
    try:
        for id in ("000001", "000002"):
            job = queue.get(id)
            assert job.state == "interrupted" and "server ended" in job.error and job.ended and not job.process
        done = wait(queue, "000003")
        assert done.state == "done" and read_recipe(root / done.outputs[0])["prompt"] == "the one that waited"
        assert queue.submit("generate", SHORT).id == "000004"
    finally:
        queue.close()


def test_a_process_that_outlived_its_server_is_ended_before_anything_runs(full_workspace) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    jobs = full_workspace.private_folder("jobs")
    queue = JobQueue(full_workspace)
    job = queue.submit("generate", SHORT)
    queue.close()
    plain = json.loads((jobs / f"{job.id}.json").read_text())
    plain |= {"state": "running", "process": identity_of(other.pid)}
    (jobs / f"{job.id}.json").write_text(json.dumps(plain))
    again = JobQueue(full_workspace)
    try:
        assert other.wait(timeout=10) == -signal.SIGKILL
        assert again.get(job.id).state == "interrupted" and "had to be killed" in again.get(job.id).error
    finally:
        again.close()


def test_a_pid_that_was_given_anew_is_left_alone(full_workspace) -> None:
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        queue = JobQueue(full_workspace)
        queue.close()
        number, start, boot = identity_of(innocent.pid).split()
        stale = Job(
            "000007", "train", {"recipe": "recipe.yaml"}, "running", process=f"{number} {int(start) - 1} {boot}"
        )
        queue._store.save(stale)
        again = JobQueue(full_workspace)
        again.close()
        assert again.get("000007").state == "interrupted" and innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.full
def test_closing_saves_what_trains_and_keeps_what_waits(full_workspace, wait) -> None:
    queue = JobQueue(full_workspace)
    try:
        training = queue.submit("train", {"recipe": "recipe.yaml"})
        behind = queue.submit("prepare", {"recipe": "recipe.yaml"})
        identity = wait(queue, training.id, lambda job: job.progress.done >= 2).process
    finally:
        queue.close()
    assert not alive(identity)
    assert record(full_workspace, training.id)["state"] == "interrupted"
    assert record(full_workspace, behind.id)["state"] == "queued"
    assert newest_valid(full_workspace.root / "runs" / "new" / "checkpoints") is not None
    with pytest.raises(UserError, match="being stopped"):
        queue.submit("generate", SHORT)
    again = JobQueue(full_workspace)
    try:
        assert wait(again, behind.id).state == "done"
    finally:
        again.close()


def test_damaged_records_are_set_aside(full_workspace) -> None:
    jobs = full_workspace.private_folder("jobs")
    for name, text in {"000004": "{", "000005": "[]", "000006": '{"id": "000001"}', "000007": "\xff"}.items():
        (jobs / f"{name}.json").write_text(text)
    (jobs / "000008.json.part").write_text("{")
    queue = JobQueue(full_workspace)
    try:
        assert queue.list() == []
        assert sorted(path.name for path in jobs.iterdir()) == [f"00000{n}.json.damaged" for n in (4, 5, 6, 7)]
        assert queue.submit("generate", SHORT).id == "000008"
    finally:
        queue.close()


@pytest.mark.parametrize("id", ["", "1", "000009", "../000001", "000001.json", "000001/../000001", None, 1, ["000001"]])
def test_only_a_known_number_is_a_job(queue, id) -> None:
    for ask in (queue.get, queue.stop, queue.log):
        with pytest.raises(UsageError, match="none of this number"):
            ask(id)


BAD = [
    ("magic", {}), ("generate", {}), ("generate", {**SHORT, "out": "/etc/passwd"}), ("generate", {**SHORT, "steps": 0}),
    ("generate", {**SHORT, "steps": 1001}), ("generate", {**SHORT, "frames": 100_000}),
    ("generate", {**SHORT, "width": 0}),
    ("generate", {**SHORT, "width": 5000}), ("generate", {**SHORT, "frames": 1024, "width": 4096, "height": 4096}),
    ("generate", {**SHORT, "num_videos": 17}), ("generate", {**SHORT, "fps": float("nan")}),
    ("generate", {**SHORT, "guidance": float("inf")}), ("generate", {**SHORT, "seed": -1}),
    ("generate", {**SHORT, "seed": 2**63}), ("generate", {**SHORT, "seed": True}),
    ("generate", {**SHORT, "steps": "30;ls"}),
    ("generate", {**SHORT, "prompt": "x" * 4001}), ("generate", {**SHORT, "prompt": None}),
    ("generate", {**SHORT, "sampler": "magic"}), ("generate", {**SHORT, "format": "../mp4"}),
    ("generate", {**SHORT, "checkpoint": "../../x"}), ("generate", {**SHORT, "device": "cuda:99"}),
    ("refine", {"model": "runs/first", "video": "clip.mp4", "prompt": "p", "strength": 1.1}),
    ("refine", {"model": "runs/first", "video": "clip.mp4", "prompt": "  "}),
    ("noise", {"model": "runs/first", "video": "data"}), ("noise", {"model": "runs/first", "video": "recipe.yaml"}),
    ("inspect", {"data": "data", "width": 0}), ("inspect", {"data": "none"}), ("train", {"recipe": "clip.mp4"}),
    ("train", {"recipe": "recipe.yaml", "changes": {"train.steps": 10**12}}),
    ("train", {"recipe": "recipe.yaml", "changes": {"train.stepz": 1}}),
    ("train", {"recipe": "recipe.yaml", "changes": {"data.frames": 5000}}),
    ("train", {"recipe": "recipe.yaml", "changes": {"data.buckets": [[8, 9000, 32]]}}),
    ("train", {"recipe": "recipe.yaml", "changes": {"train.batch_size": 10**6}}),
    ("train", {"recipe": "recipe.yaml", "changes": "train.steps=1"}),
    ("evaluate", {"model": "runs/first", "prompts": 1}),
    ("evaluate", {"model": "runs/first", "metrics": "a;b"}),
    ("evaluate", {"model": "runs/first", "metrics": "--json=x"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "request_"), BAD, ids=lambda value: str(value)[:60])
def test_requests_out_of_bounds_are_not_queued(queue, kind, request_) -> None:
    with pytest.raises(UsageError):
        queue.submit(kind, request_)
    assert queue.list() == [] and list((queue.workspace.root / ".reelwright" / "jobs").iterdir()) == []


def test_the_queue_has_an_end_and_old_jobs_go(queue, wait, monkeypatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_QUEUED", 3)
    monkeypatch.setattr(jobs_module, "MAX_KEPT", 3)
    first = queue.submit("generate", LONG)
    wait(queue, first.id, lambda job: job.state == "running")
    waiting = [queue.submit("generate", LONG) for _ in range(3)]
    with pytest.raises(UserError, match="3 jobs are waiting"):
        queue.submit("generate", LONG)
    assert len(queue.list()) == 4  # none that is active is forgotten
    for job in (*waiting, first):
        queue.stop(job.id)
    wait(queue, first.id)
    queue.submit("generate", {**SHORT, "seed": 1})
    assert [job.id for job in queue.list()] == ["000005", "000004", "000003"]
    assert not (queue.workspace.root / ".reelwright" / "jobs" / "000001.json").exists()


def test_a_file_of_the_workspace_is_never_imported(queue, wait) -> None:
    for name in ("reelwright.py", "json.py", "torch.py", "sitecustomize.py"):
        (queue.workspace.root / name).write_text("raise SystemExit('imported')")
    assert wait(queue, queue.submit("generate", SHORT).id).state == "done"
    assert wait(queue, queue.submit("inspect", {"data": "data"}).id).state in ("done", "failed")
    assert "imported" not in queue.log("000002")
