import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from reelwright.run import RunDirectory, compare_recipes, score_conditions, step_of
from reelwright.types import UsageError, UserError

HOLD_LOCK = (
    "import sys, time; from pathlib import Path; from reelwright.run import RunDirectory\n"
    "with RunDirectory(Path(sys.argv[1])).lock():\n"
    "    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "a")


def hold_lock_elsewhere(run: RunDirectory) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(run.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    return holder


def test_a_run_exists_once_its_recipe_is_there(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match=r"not a run directory.*recipe\.yaml"):
        RunDirectory.open(run.path)
    recipe = {"seed": 0, "train": {"learning_rate": 1e-4, "steps": 1000}, "data": {"path": "Vidéos: ü", "videos": None}}
    run.write_recipe(recipe)
    assert RunDirectory.open(run.path).read_recipe() == recipe
    run.append_metrics({"step": 1, "loss": 0.5})
    assert RunDirectory.create(run.path).read_metrics() == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("name", ["model_index.json", "manifest.json"])
def test_an_exported_model_and_a_checkpoint_are_no_runs(run: RunDirectory, name: str) -> None:
    run.write_recipe({"seed": 0})
    assert run.exists()
    (run.path / name).write_text("{}")
    assert not run.exists()
    with pytest.raises(UsageError, match=r"not a run directory \(an exported model or a single checkpoint\)"):
        RunDirectory.open(run.path)


def test_the_newest_figures_are_read_from_the_end(run: RunDirectory) -> None:
    assert run.recent_metrics() == {} == RunDirectory(run.path / "nothing").recent_metrics()
    run.append_metrics({"step": 1, "early": 1})
    for step in range(2, 1000):
        run.append_metrics({"step": step, "loss": 1 / step, "good": True, "heldout_split": "train"})
    run.append_metrics({"step": 999, "heldout_loss": 0.5})
    newest = {"step": 999, "loss": 1 / 999, "heldout_loss": 0.5}
    assert run.recent_metrics() == newest, "figures alone, and none from far back"
    run.append_metrics({"step": 1000, "loss": math.nan})
    assert run.recent_metrics() == {"step": 1000, "heldout_loss": 0.5}, (
        "a loss that is none is not told by an older one"
    )
    with run.metrics_path.open("ab") as file:
        file.write(b'{"step": 1001, "lo')
    assert run.recent_metrics()["step"] == 1000


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="run_dir = .*file/run"):
        RunDirectory.create(tmp_path / "file" / "run")


def test_metrics_come_back_exactly(run: RunDirectory) -> None:
    records = [{"step": index, "loss": 0.1 * index / 3, "text": "ü\u2028 \x85 \n"} for index in range(5)]
    for record in records:
        run.append_metrics(record)
    assert run.read_metrics() == records
    assert RunDirectory(run.path / "nothing").read_metrics() == []


def test_no_line_is_invalid_json(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "loss": math.nan, "heldout_by_time": [1.0, math.inf], "more": {"x": -math.inf}})
    text = run.metrics_path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert run.read_metrics() == [{"step": 1, "loss": None, "heldout_by_time": [1.0, None], "more": {"x": None}}]


@pytest.mark.parametrize("kept_bytes", range(1, 24))
def test_a_half_written_last_line_is_passed_over_and_replaced(run: RunDirectory, kept_bytes: int) -> None:
    run.append_metrics({"step": 1, "loss": 0.5})
    whole = run.metrics_path.read_bytes()
    run.append_metrics({"step": 2, "loss": 0.25})
    run.metrics_path.write_bytes(run.metrics_path.read_bytes()[: len(whole) + kept_bytes])
    assert run.read_metrics()[:1] == [{"step": 1, "loss": 0.5}]
    assert len(run.read_metrics()) == 1 or kept_bytes == 23  # all but the newline was written
    run.append_metrics({"step": 2, "loss": 0.125})
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]


def test_damage_in_the_middle_is_named_not_skipped(run: RunDirectory) -> None:
    for step in range(3):
        run.append_metrics({"step": step})
    lines = run.metrics_path.read_text().splitlines()
    run.metrics_path.write_text("\n".join([lines[0], lines[1][:4], lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        run.read_metrics()


def test_rewind_drops_what_came_after_the_step(run: RunDirectory) -> None:
    run.log("starting")
    run.append_metrics({"event": "start"})
    for step in range(10, 60, 10):
        run.append_metrics({"step": step, "loss": 1 / step})
        run.log(f"loss {1 / step}\nsecond line", step=step)
    run.append_metrics({"step": 60})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 7')  # half written by a kill
    before = run.metrics_path.read_bytes().split(b"\n")
    run.rewind(30)
    assert [record.get("step") for record in run.read_metrics()] == [None, 10, 20, 30]
    assert run.metrics_path.read_bytes().split(b"\n")[:-1] == before[:4], "kept lines are kept byte for byte"
    log = run.log_path.read_text().splitlines()
    assert len(log) == 1 + 3 * 2
    assert log[0].endswith("  starting") and log[-1].endswith("step      30  second line")
    run.rewind(30)
    assert run.log_path.read_text().splitlines() == log
    run.rewind(0)
    assert run.read_metrics() == [{"event": "start"}]


def test_a_run_rewound_and_repeated_reads_as_one_never_stopped(run: RunDirectory) -> None:
    for step in range(1, 8):
        run.append_metrics({"step": step, "loss": 1 / step})
    whole = run.metrics_path.read_bytes()
    run.rewind(3)
    for step in range(4, 8):
        run.append_metrics({"step": step, "loss": 1 / step})
    assert run.metrics_path.read_bytes() == whole


def test_log_lines_start_with_the_time(run: RunDirectory) -> None:
    run.log_path.write_text("2026-01-01 00:00:00  cut by a ki")
    run.log("broken \ud800 unicode", step=5)
    first, second = run.log_path.read_text().splitlines()
    assert first.endswith("cut by a ki")
    time.strptime(second[:19], "%Y-%m-%d %H:%M:%S")


def test_checkpoints_are_listed_in_order(run: RunDirectory) -> None:
    assert RunDirectory(run.path / "nothing").list_checkpoints() == []
    for step in (1000, 20, 12_345_678):
        run.checkpoint_path(step).mkdir()
    for other in (".step-0000030.part", "step-12", "best", "step-0000040.tmp"):
        (run.checkpoints / other).mkdir()
    run.checkpoint_path(50).touch()  # a file is no checkpoint
    assert [step_of(path) for path in run.list_checkpoints()] == [20, 1000, 12_345_678]
    assert run.checkpoint_path(1000).name == "step-0001000"
    assert step_of(run.sample_path(500, 3)) == 500
    with pytest.raises(ValueError, match="step-0001000"):
        step_of(Path("best"))


def test_scores_come_back(run: RunDirectory) -> None:
    assert run.read_scores() == ([], {})
    rows = [{"row": "model", "metric": "joint accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 256}]
    rows.append(
        {"row": "model", "metric": "x", "value": 1.0, "split": "s", "low": None, "sampler": "euler", "steps": 4}
    )
    run.write_scores(rows, {"sha256": "0" * 64, "minutes": math.nan})
    assert run.read_scores() == (rows, {"sha256": "0" * 64, "minutes": None})
    assert [score_conditions(row) for row in rows] == [{}, {"sampler": "euler", "steps": 4}]
    with pytest.raises(ValueError, match="lacks metric"):
        run.write_scores([{"row": "model", "value": 1.0}], {})
    run.scores_path.write_text("[{")
    with pytest.raises(UserError, match="damaged"):
        run.read_scores()


def test_a_second_writer_is_refused_at_once_and_told_by_whom(run: RunDirectory) -> None:
    holder = hold_lock_elsewhere(run)
    try:
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"process {holder.pid} on ") as refusal, run.lock():
            pass
        assert time.monotonic() - start < 1
        assert refusal.value.exit_code == 1
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_of_a_killed_trainer_is_free(run: RunDirectory) -> None:
    holder = hold_lock_elsewhere(run)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with run.lock():
        assert f"process {os.getpid()} on" in run.lock_path.read_text()
    with run.lock():
        pass


def test_a_lock_is_given_back_when_the_work_fails(run: RunDirectory) -> None:
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError("training failed")
    hold_lock = hold_lock_elsewhere(run)
    hold_lock.kill()
    hold_lock.communicate()


def _wait(started: Event) -> None:
    started.set()
    time.sleep(60)


def _train_with_a_worker(path: Path, started: Event, workers: "multiprocessing.Queue[int]") -> None:
    with RunDirectory(path).lock():
        worker = multiprocessing.get_context("fork").Process(target=_wait, args=(started,))
        worker.start()
        workers.put(worker.pid or 0)
        worker.join()


def test_a_data_worker_that_outlives_its_killed_trainer_does_not_hold_the_lock(run: RunDirectory) -> None:
    context = multiprocessing.get_context("fork")
    started, workers = context.Event(), context.Queue()
    trainer = context.Process(target=_train_with_a_worker, args=(run.path, started, workers))
    trainer.start()
    worker_pid = workers.get(timeout=10)
    try:
        assert started.wait(10)
        with pytest.raises(UserError, match=f"process {trainer.pid} on"), run.lock():
            pass
        trainer.kill()
        trainer.join()
        os.kill(worker_pid, 0)  # the orphan is alive
        with run.lock():
            pass
    finally:
        os.kill(worker_pid, signal.SIGKILL)


def test_differences_name_the_key_and_both_values() -> None:
    old = {"seed": 0, "train": {"steps": 100, "learning_rate": 1e-4, "save_every": 10}, "model": {"type": "dit"}}
    new = {
        "seed": 0,
        "train": {"steps": 200, "learning_rate": 3e-4, "save_every": 20},
        "model": {"type": "dit", "depth": 4},
    }
    allowed = {"train.steps", "train.save_every"}
    assert compare_recipes(old, old, set()) == []
    assert [str(difference) for difference in compare_recipes(old, new, allowed)] == [
        "train.learning_rate: 0.0001 in the run, 0.0003 now",
        "model.depth: not set in the run, 4 now",
    ]
    assert [difference.key for difference in compare_recipes(new, old, allowed | {"model"})] == ["train.learning_rate"]
    assert compare_recipes({"a": {"b": 1}}, {"a": {"bc": 1}}, {"a.b"})[0].key == "a.bc", "a prefix is not a group"


def test_a_recipe_read_back_from_disk_does_not_differ(run: RunDirectory) -> None:
    recipe = {
        "a": 1e-4,
        "b": 1e22,
        "c": None,
        "d": [1, 2.5, "x"],
        "e": "1.0",
        "f": True,
        "g": "no",
        "h": {"i": "null"},
    }
    run.write_recipe(recipe)
    assert compare_recipes(run.read_recipe(), json.loads(json.dumps(recipe)), set()) == []
