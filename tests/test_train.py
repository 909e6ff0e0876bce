"""`train`: it learns, goes on to the byte where it was stopped, and refuses what would ruin a run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import reelwright.train as train_verb
from reelwright.data.dataset import CachedDataset
from reelwright.diffusion.objective import Objective
from reelwright.loading import load_model
from reelwright.prepare import prepare
from reelwright.recipe import Recipe
from reelwright.resume import check_same_run, fork_run
from reelwright.run import RunDirectory
from reelwright.train import train
from reelwright.types import UsageError, UserError

TIMING = ("seconds", "samples_per_second")


@pytest.fixture
def tiny(tmp_path: Path, write_recipe) -> Any:
    """`tiny("train.steps=4", run="other")`: a tiny recipe training in tmp_path/<run>/run."""

    def load(*overrides: str, run: str = "first") -> Recipe:
        return Recipe.load(write_recipe(*overrides, folder=tmp_path / run))

    return load


def quietly(recipe: Recipe, **options: Any) -> train_verb.Outcome:
    return train(recipe, say=lambda _: None, **options)


def hashes(run: Path, step: int) -> dict[str, str]:
    """sha256 of every tensor file, and of the tokenizer, of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    files = [*folder.glob("*.safetensors"), folder / "tokenizer.json", folder / "state.json"]
    assert len(files) >= 5
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def figures(run: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock decides."""
    return [{k: v for k, v in r.items() if k not in TIMING} for r in RunDirectory(run).read_metrics()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stop_at(step: int, number: signal.Signals = signal.SIGINT) -> Any:
    """An `on_step` that sends this process a signal when `step` steps are done."""
    return lambda done, *_: os.kill(os.getpid(), number) if done == step else None


def test_the_loss_falls(tiny):
    settings = ("train.steps=120", "train.log_every=20", "train.save_every=120", "train.evaluate_every=60")
    outcome = quietly(tiny(*settings, "train.learning_rate=0.006", "train.warmup_steps=10"))
    losses = [r["loss"] for r in figures(outcome.run_dir) if "loss" in r]
    held_out = [r["heldout_loss"] for r in figures(outcome.run_dir) if "heldout_loss" in r]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]
    assert len(held_out) == 2 and held_out[1] < held_out[0]


@pytest.mark.parametrize(("stop", "number"), [(5, signal.SIGINT), (6, signal.SIGTERM)])
def test_interrupted_equals_uninterrupted(tiny, trained_run, stop, number):
    """Step 5 lies between two logged lines (log_every is 2) and between two checkpoints (save_every is 4)."""
    first = quietly(tiny(), on_step=stop_at(stop - 1, number))
    assert (first.step, first.interrupted) == (stop, number.name)
    said: list[str] = []
    second = train(tiny(), say=said.append)
    assert (second.step, second.interrupted) == (8, None)
    assert f"resuming from step-{stop:07d}" in said
    assert hashes(second.run_dir, 8) == hashes(trained_run, 8)
    assert figures(second.run_dir) == figures(trained_run)
    assert not [line for line in said if "damaged" in line]


def test_eight_bit_moments_train_and_go_on_bit_for_bit(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = ("train.optimizer=adamw8bit", "train.steps=6", "model.width=64", "model.heads=4")  # its blocks hold 4,096
    whole = quietly(tiny(*wide, f"run_dir={tmp_path / 'whole'}"))
    assert quietly(tiny(*wide), on_step=stop_at(3)).step == 4
    parts = quietly(tiny(*wide))
    assert parts.step == whole.step == 6 and hashes(parts.run_dir, 6) == hashes(whole.run_dir, 6)
    assert figures(parts.run_dir) == figures(whole.run_dir)
    full = quietly(tiny(*wide, "train.optimizer=adamw", f"run_dir={tmp_path / 'full'}"))
    assert hashes(full.run_dir, 6) != hashes(whole.run_dir, 6)


def test_a_finished_run_is_left_as_it_is_and_said_to_be_finished(tiny):
    said: list[str] = []
    run = train(tiny(), say=said.append).run_dir
    assert said[-1].startswith("done: 8 steps in ") and not [line for line in said if "already finished" in line]
    before = snapshot(run / "checkpoints"), figures(run)
    again: list[str] = []
    assert train(tiny(), say=again.append).step == 8
    assert (snapshot(run / "checkpoints"), figures(run)) == before
    assert again[-1] == f"{run} is already finished at step 8; nothing to do (train.steps=... beyond that to go on)"
    assert not [line for line in again if "resuming" in line]
    assert not [line for line in again if line.startswith("done")], "nothing was done"
    by_epochs = ("train.steps=null", "train.epochs=0.2")
    quietly(tiny(*by_epochs, run="epochs"))
    train(tiny(*by_epochs, run="epochs"), say=again.append)
    assert "already finished at step 1; nothing to do (train.epochs=... beyond that to go on)" in again[-1]


def test_the_log_has_a_line_every_interval_and_is_rewound_with_the_run(tiny, monkeypatch):
    """log_every is 2, evaluate_every and save_every 4: killed in step 7, it goes on from step 4."""

    def killed(done: int, *_: Any) -> None:
        if done == 7:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quietly(tiny(), on_step=killed)
    run = RunDirectory(tiny().run_dir)
    assert [step for step, text in logged_steps(run) if text.startswith("loss")] == [2, 4, 6]
    quietly(tiny())
    losses = {record["step"]: record for record in run.read_metrics() if "loss" in record}
    held_out = {record["step"]: record for record in run.read_metrics() if "heldout_loss" in record}
    lines = logged_steps(run)
    assert [step for step, _ in lines] == [2, 4, 4, 6, 8, 8], "each once, none of them lost"
    for step, text in lines:
        if text.startswith("held-out"):
            of = held_out[step]
            interval = f"[{of['heldout_low']:.4f}, {of['heldout_high']:.4f}]"
            assert text == f"held-out loss {of['heldout_loss']:.4f} {interval}  4 clips"
        else:
            of = losses[step]
            assert text == (
                f"loss {of['loss']:.4f}  learning rate {of['learning_rate']:.3g}  "
                f"{of['samples_per_second']:.4g} samples/s"
            )


def test_on_a_gpu_the_line_tells_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    figures = {"loss": 0.5, "learning_rate": 1e-4, "samples_per_second": 12.0}
    assert train_verb._step_line(figures, torch.device("cuda")) == (
        "loss 0.5000  learning rate 0.0001  12 samples/s  3.00 GiB at most"
    )


def logged_steps(run: RunDirectory) -> list[tuple[int, str]]:
    """(step, text) of the lines of training.log that belong to one."""
    matches = [re.match(r"\S+ \S+  step +(\d+)  (.*)", line) for line in run.log_path.read_text().splitlines()]
    return [(int(match[1]), match[2]) for match in matches if match]


def test_windows_that_do_not_fit_are_refused_before_the_first_step(tiny):
    with pytest.raises(UsageError, match=r"window_frames = 6: .*; 0 takes all frames at once"):
        train(tiny("sampling.window_frames=6"), on_step=lambda *_: pytest.fail("stepped"), say=lambda _: None)


def test_more_steps_may_be_asked_for(tiny):
    quietly(tiny("train.steps=4"))
    outcome = quietly(tiny("train.steps=6", "train.log_every=1", "sampling.steps=2"))
    assert outcome.step == 6 and [r["step"] for r in figures(outcome.run_dir) if "loss" in r] == [2, 4, 5, 6]


def test_steps_from_epochs(tiny):
    """20 clips are trained on: two passes are 40 samples, in batches of 4."""
    assert quietly(tiny("train.steps=null", "train.epochs=2", "train.evaluate_every=0")).step == 10


def test_micro_batches_give_the_same_loss_on_the_same_samples(tiny, monkeypatch):
    asked: dict[str, list[Any]] = {"one": [], "four": []}
    loaded = CachedDataset.load
    losses = {}
    for name, micro in (("one", 1), ("four", 4)):

        def load(self: Any, items: Any, *rest: Any, name: str = name) -> Any:
            asked[name].extend(items)
            return loaded(self, items, *rest)

        monkeypatch.setattr(CachedDataset, "load", load)
        settings = (f"train.micro_batch={micro}", "train.steps=3", "train.log_every=1", "train.evaluate_every=0")
        run = quietly(tiny(*settings, run=name)).run_dir
        losses[name] = [r["loss"] for r in figures(run) if "loss" in r]
    assert asked["one"] == asked["four"] and len(asked["one"]) == 12
    assert losses["one"] == pytest.approx(losses["four"], rel=1e-5)


def test_mixed_samples_stay_together_whatever_the_micro_batch(tiny):
    """`train.mixup` reaches the loss, and micro-batches change nothing; of odd ones the even part is taken."""
    pooled = ("model.text_tokens=pooled", "train.steps=3", "train.log_every=1", "train.evaluate_every=0")
    losses = {}
    for name, settings in {
        "plain": (), "whole": ("train.mixup=1",), "two": ("train.mixup=1", "train.micro_batch=2"),
        "three": ("train.mixup=1", "train.micro_batch=3"),
    }.items():  # fmt: skip
        run = quietly(tiny(*pooled, *settings, run=name)).run_dir
        losses[name] = [r["loss"] for r in figures(run) if "loss" in r]
    assert losses["two"] == pytest.approx(losses["whole"], rel=1e-5)
    assert losses["three"] == pytest.approx(losses["whole"], rel=1e-5)
    assert losses["plain"] != pytest.approx(losses["whole"], rel=1e-3)


def test_global_random_state_does_not_enter(tiny, trained_run):
    torch.manual_seed(987)
    torch.rand(10)
    assert hashes(quietly(tiny()).run_dir, 8) == hashes(trained_run, 8)


def test_another_seed_is_another_run(tiny, trained_run):
    assert hashes(quietly(tiny("seed=1")).run_dir, 8) != hashes(trained_run, 8)


def test_a_run_that_failed_before_its_first_step_binds_nobody(tiny, monkeypatch):
    def no_weights(*_: Any, **__: Any) -> None:
        raise UserError("no weights")

    with monkeypatch.context() as patch:
        patch.setattr(train_verb, "build_bundle", no_weights)
        with pytest.raises(UserError, match="no weights"):
            quietly(tiny("train.steps=2", "model.depth=3"))
    run = Path(tiny().run_dir)
    assert Recipe.load(run / "recipe.yaml").model.plain()["depth"] == 3
    quietly(tiny("train.steps=2"))
    assert Recipe.load(run / "recipe.yaml").model.plain()["depth"] == 2
    for _ in range(2):  # now there is something to lose: its checkpoints, and without them its figures
        with pytest.raises(UsageError, match=r"model.depth: 2 in the run, 3 now"):
            quietly(tiny("train.steps=2", "model.depth=3"))
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def test_a_changed_recipe_on_an_old_run_is_refused(tiny):
    run = quietly(tiny("train.steps=2")).run_dir
    before = snapshot(run)
    with pytest.raises(UsageError, match=r"train.learning_rate: 0.002 in the run, 0.001 now(?s:.*)--fork"):
        quietly(tiny("train.steps=2", "train.learning_rate=0.001"))
    with pytest.raises(UsageError, match=r"model.depth: 2 in the run, 3 now"):
        check_same_run(train_verb.settle(tiny("model.depth=3")))
    assert snapshot(run) == before


def test_a_fork_goes_on_from_the_weights_elsewhere(tiny):
    origin = quietly(tiny("train.steps=4")).run_dir
    before = snapshot(origin)
    second = origin.with_name("second")
    changed = tiny("train.steps=6", "train.learning_rate=0.001")
    with pytest.raises(UsageError, match="no step is left"):
        fork_run(tiny("train.steps=4"), second)
    assert not second.exists()
    said: list[str] = []
    outcome = train(fork_run(changed, second), say=said.append)
    assert outcome.run_dir == second
    assert outcome.step == 6 and "resuming from step-0000004" in said
    assert [r["step"] for r in figures(outcome.run_dir) if "loss" in r] == [6]
    assert snapshot(origin) == before
    assert train(fork_run(changed, second), say=said.append).step == 6, "the same command again goes on"
    with pytest.raises(UsageError, match="not a run directory"):
        fork_run(tiny(run="third"), origin.with_name("fourth"))


def test_a_second_trainer_on_one_run_is_refused(tiny):
    recipe = tiny("train.steps=2")
    quietly(recipe)
    before = snapshot(recipe.run_dir)
    with (recipe.run_dir / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="already being written"):
            quietly(tiny("train.steps=4"))
    assert snapshot(recipe.run_dir) == before
    assert quietly(tiny("train.steps=4")).step == 4


def test_a_loss_that_is_not_finite_stops_before_the_weights(tiny, monkeypatch):
    recipe = tiny("train.evaluate_every=0", "train.log_every=1")
    quietly(recipe, on_step=stop_at(3))
    before = snapshot(recipe.run_dir / "checkpoints")
    loss = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda *a: loss(*a) * math.nan)
    with pytest.raises(UserError, match=r"step 5 gave.*Clips of this step: \d+.mp4(?s:.*)train.learning_rate"):
        quietly(recipe)
    assert snapshot(recipe.run_dir / "checkpoints") == before and "step-0000004/model.safetensors" in before
    monkeypatch.setattr(Objective, "loss", loss)
    assert quietly(recipe).step == 8, "and the run goes on once the reason is gone"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_checkpoint_is_passed_over(tiny, trained_run, keep):
    run = quietly(tiny()).run_dir
    damaged = run / "checkpoints" / "step-0000008" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    said: list[str] = []
    keeping = f"train.keep_checkpoints={keep}"
    # stopped on the way, so that the checkpoint it writes is older than the damaged one
    assert train(tiny(keeping), on_step=stop_at(5), say=said.append).step == 6
    assert any("step-0000008 is damaged and is passed over" in line and "model.safetensors" in line for line in said)
    assert "resuming from step-0000004" in said
    train(tiny(keeping), say=said.append)
    assert "resuming from step-0000006" in said, "pruning never takes the only whole checkpoint"
    assert hashes(run, 8) == hashes(trained_run, 8)
    assert figures(run) == figures(trained_run)


def test_a_codec_fitted_anew_is_not_mixed_into_an_old_run(tiny, tmp_path, shapes_clips):
    """The latents of `prepare --refit` on other clips mean something else than those the run was trained on."""
    data = shutil.copytree(shapes_clips, tmp_path / "data")
    own = [f"data.path={data}", f"cache_dir={tmp_path / 'cache'}", "data.max_dropped=1"]
    run = quietly(tiny(*own)).run_dir
    captions = data / "captions.json"
    captions.write_text(json.dumps(dict(list(json.loads(captions.read_text()).items())[:12])))
    prepare(tiny(*own), refit=True)
    before = snapshot(run / "checkpoints")
    with pytest.raises(UserError, match="fitted anew since(?s:.*)codec.safetensors"):
        quietly(tiny(*own, "train.steps=10"))
    assert snapshot(run / "checkpoints") == before
    for line in str(pytest.raises(UserError, quietly, tiny(*own, "train.steps=10")).value).splitlines():
        if line.strip().startswith("cp "):  # the way out that the message shows
            _, source, target = line.split()
            shutil.copy(source, target)
    assert quietly(tiny(*own, "train.steps=10")).step == 10


def test_an_interruption_while_preparing_stops_at_once(tiny, tmp_path):
    recipe = tiny(f"cache_dir={tmp_path / 'cache'}")
    seen: list[str] = []

    def interrupt(stage: str, *_: int) -> None:
        seen.append(stage)
        if seen.count("inspecting") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quietly(recipe, on_prepare=interrupt)
    assert len(seen) <= 4 and not list((recipe.run_dir / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept(tiny, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5])
    measure = train_verb.held_out_loss
    monkeypatch.setattr(train_verb, "held_out_loss", lambda *a: {**measure(*a), "heldout_loss": next(losses)})
    recipe = tiny("train.track_best=true", "train.evaluate_every=2", "train.save_every=3", "train.keep_checkpoints=1")
    run = quietly(recipe).run_dir
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["final", "step-0000004", "step-0000008"]
    assert load_model(str(run / "checkpoints" / "final")).step == load_model(str(run)).step == 4
    state = json.loads((run / "checkpoints" / "step-0000008" / "state.json").read_text())
    assert (state["best_step"], state["best_loss"]) == (4, 1.0)


def test_the_final_model_stands_at_the_last_step_and_not_before(tiny, trained_run):
    final = trained_run / "checkpoints" / "final"
    loaded, of_run = load_model(str(final)), load_model(str(trained_run))
    assert (loaded.step, loaded.weights_sha256) == (8, of_run.weights_sha256)
    assert of_run.origin.endswith("step-0000008"), "it is no checkpoint to resume or choose from"
    assert f"final model: {final}" in (trained_run / "training.log").read_text()
    assert "20 clips" in (final / "README.md").read_text()

    stopped = quietly(tiny(), on_step=stop_at(5))
    final = stopped.run_dir / "checkpoints" / "final"
    assert stopped.interrupted and not final.exists()
    (final.parent / ".writing-final").mkdir()  # as a kill leaves it
    quietly(tiny())
    weights = {name: data for name, data in snapshot(final).items() if name.endswith(".safetensors")}
    assert weights.items() <= snapshot(trained_run / "checkpoints" / "final").items() and len(weights) == 3
    assert not list(final.parent.glob(".writing-*"))
    before = {path.name: path.stat().st_mtime_ns for path in final.iterdir()}
    quietly(tiny())
    assert {path.name: path.stat().st_mtime_ns for path in final.iterdir()} == before, "nothing to do"

    quietly(tiny("train.steps=12"), on_step=stop_at(9))
    assert load_model(str(final)).step == 8, "the earlier one, until the run has reached its new end"
    quietly(tiny("train.steps=12"))
    assert load_model(str(final)).step == 12


def test_a_final_model_that_is_damaged_or_gone_is_made_anew(tiny):
    final = quietly(tiny("train.steps=4")).run_dir / "checkpoints" / "final"
    (final / "codec" / "model.safetensors").write_bytes(b"short")
    quietly(tiny("train.steps=4"))
    assert load_model(str(final)).step == 4
    shutil.rmtree(final)
    quietly(tiny("train.steps=4"))
    assert load_model(str(final)).step == 4


def test_what_a_user_put_in_place_of_the_final_model_is_left(tiny):
    folder = tiny("train.steps=4").run_dir / "checkpoints" / "final"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    told: list[str] = []
    train(tiny("train.steps=4"), say=told.append)  # the run itself is done: it says so and ends well
    assert any("no final model: " in line and "final: the folder is not empty (mine.txt)" in line for line in told)
    assert (folder / "mine.txt").read_text() == "mine" and load_model(str(folder.parents[1])).step == 4


def test_what_a_run_leaves(trained_run):
    run = RunDirectory(trained_run)
    logged = [r for r in run.read_metrics() if "loss" in r]
    assert [r["step"] for r in logged] == [2, 4, 6, 8]
    assert all(r["grad_norm"] > 0 and r["samples_per_second"] > 0 and r["seconds"] > 0 for r in logged)
    assert logged[-1]["learning_rate"] < logged[0]["learning_rate"] <= 2e-3
    held_out = [r for r in run.read_metrics() if "heldout_loss" in r]
    assert [r["step"] for r in held_out] == [4, 8]
    assert all(r["heldout_low"] <= r["heldout_loss"] <= r["heldout_high"] for r in held_out)
    assert held_out[0]["heldout_split"] == "validation" and len(held_out[0]["heldout_by_time"]) == 8
    names = {path.name for path in run.samples.iterdir()}
    assert names == {"step-0000008-00.mp4", "step-0000008-00.mp4.json", "step-0000008.png"}
    assert [p.name for p in run.list_checkpoints()] == ["step-0000004", "step-0000008"]
    assert "parameters on cpu in fp32; 20 training samples, 4 held out" in run.log_path.read_text()
    page = run.report_path.read_text()
    assert "<html" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert Recipe.load(run.recipe_path).train.precision == "fp32"


def test_samples_and_trackers_every_so_often(tiny):
    run = quietly(tiny("train.sample_every=2", "train.steps=4", "train.tensorboard=true")).run_dir
    assert sorted(p.name for p in (run / "samples").glob("*.mp4")) == ["step-0000002-00.mp4", "step-0000004-00.mp4"]
    assert list((run / "tensorboard").glob("events.*"))


def test_without_held_out_clips_the_figure_says_so(tiny):
    run = quietly(tiny("data.validation=0", "train.steps=4")).run_dir
    assert [r["heldout_split"] for r in figures(run) if "heldout_loss" in r] == ["train"]


def test_bf16_keeps_float32_master_weights(tiny):
    from safetensors.torch import load_file

    run = quietly(tiny("train.precision=bf16", "train.steps=4")).run_dir
    tensors = load_file(run / "checkpoints" / "step-0000004" / "model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    assert all(math.isfinite(r["loss"]) for r in figures(run) if "loss" in r)


def test_settings_that_cannot_work_here(tiny):
    with pytest.raises(UsageError, match="precision = 'fp16'"):
        quietly(tiny("train.precision=fp16"))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            quietly(tiny("train.device=cuda"))
    assert not tiny().run_dir.exists()
