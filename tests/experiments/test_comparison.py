"""Runs held against one another: what differs, what may be compared, and what is said of each factor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import write_run

from reelwright.experiments.comparison import Comparison, compare_experiment, compare_runs
from reelwright.experiments.record import Record, RunRecord
from reelwright.experiments.spec import run_name
from reelwright.recipe import Recipe
from reelwright.types import UsageError, UserError

RATES = {"none": 0.0, "high": 1e-3}


@pytest.fixture
def recipe(write_recipe: Any, tmp_path: Path) -> Any:
    base = write_recipe()

    def make(name: str, *overrides: str) -> Recipe:
        return Recipe.load(base, [*overrides, f"run_dir={json.dumps(str(tmp_path / name))}"])

    return make


def experiment(recipe: Any, out: Path, loss: Any, seeds: tuple[int, ...] = (0, 1, 2), **run: Any) -> Path:
    """2 learning rates x 2 depths x seeds; loss(rate, depth, seed) is the last held-out loss."""
    factors = {"rate": ["none", "high"], "model.depth": ["2", "4"]}
    record = Record("Does it matter?", factors, list(seeds), run.pop("measure", "auto"), None)
    skip = run.pop("skip", ())
    for rate in factors["rate"]:
        for depth in factors["model.depth"]:
            for seed in seeds:
                levels = {"rate": rate, "model.depth": depth}
                name = run_name(levels, seed)
                settings = (f"train.learning_rate={RATES[rate]}", f"model.depth={depth}", f"seed={seed}")
                made = recipe(f"{out.name}/runs/{name}", *settings)
                status: Any = "failed" if name in skip else "done"
                record.runs[name] = RunRecord(levels, seed, [], made.plain(), status, peak_memory_bytes=2**29)
                if name not in skip:
                    own: Any = {
                        key: value(rate, depth, seed) if callable(value) else value for key, value in run.items()
                    }
                    write_run(made, losses=(1.2, loss(rate, depth, seed)), **own)
    record.save(out)
    return out


def answers(compared: Comparison) -> dict[str, dict[str, Any]]:
    return {answer["factor"]: answer for answer in compared.answers}


def learned(rate: str, depth: str, seed: int) -> float:
    return {"none": 1.2, "high": 0.5}[rate] + 0.01 * seed


def test_a_factor_that_matters_and_one_that_does_not(recipe: Any, tmp_path: Path) -> None:
    compared = compare_experiment(experiment(recipe, tmp_path / "out", learned))
    rate, depth = answers(compared)["rate"], answers(compared)["model.depth"]
    assert compared.warnings == [] and list(compared.arms) == ["none · 2", "none · 4", "high · 2", "high · 4"]
    assert (depth["verdict"], depth["seeds"], depth["pairs"]) == ("equal", 3, 6)
    assert rate["verdict"] == "unknown", "0.7 at every seed: no spread"
    noisy = compare_experiment(
        experiment(recipe, tmp_path / "noisy", lambda r, d, s: learned(r, d, s) + 0.01 * (r == "high") * (-1) ** s)
    )
    assert answers(noisy)["rate"]["verdict"] == "larger"
    assert answers(noisy)["rate"]["difference"] == pytest.approx(-0.7 + 0.01 / 3)
    facts = noisy.to_json()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts["differences"]) == {"train.learning_rate", "model.depth", "seed"}
    arm = facts["arms"]["high · 2"]["measures"]["held-out loss"]
    assert arm["n"] == 3 and arm["low"] < arm["mean"] < arm["high"]


def test_other_data_is_said_and_not_judged(recipe: Any, tmp_path: Path) -> None:
    data = lambda rate, depth, seed: ("e" if (rate, depth, seed) == ("high", "4", 1) else "d") * 64  # noqa: E731
    compared = compare_experiment(experiment(recipe, tmp_path / "out", learned, data=data, accuracy=0.5))
    assert compared.warnings[0].startswith("Different data") and "files changed" in compared.warnings[0]
    assert "eeeeeeee: rate=high,model.depth=4,seed=1" in compared.warnings[0]
    assert {row["verdict"] for row in compared.answers + compared.effects} == {"unknown"}
    assert all("not judged" in row["sentence"] for row in compared.answers + compared.effects)


def test_data_that_differs_by_a_factor_leaves_the_other_to_be_judged_by_scores(recipe: Any, tmp_path: Path) -> None:
    """Depth stands for a factor such as the resolution, which changes what is in the cache."""
    data = lambda rate, depth, seed: depth * 64  # noqa: E731
    score = lambda rate, depth, seed: {"none": 0.1, "high": 0.9}[rate] + 0.01 * seed * (rate == "high")  # noqa: E731
    out = experiment(recipe, tmp_path / "out", learned, data=data, accuracy=score, measure="joint accuracy")
    compared = compare_experiment(out)
    assert answers(compared)["rate"]["verdict"] == "larger"
    assert "different data" in answers(compared)["model.depth"]["sentence"]
    assert all("held-out losses are not one measure" in row["sentence"] for row in compared.effects)


def test_other_checkers_and_conditions_are_said_and_not_judged(recipe: Any, tmp_path: Path) -> None:
    others = {
        "checker": lambda rate, depth, seed: "abcdef01" if rate == "none" else "12345678",
        "sampler": lambda rate, depth, seed: "euler" if rate == "none" else "ddim",
        "steps": lambda rate, depth, seed: 4 + seed,
        "guidance": lambda rate, depth, seed: 4.0 if depth == "2" else 1.0,
    }
    for name, value in others.items():
        out = experiment(
            recipe, tmp_path / name, learned, accuracy=0.5, measure="joint accuracy", **{name: value}
        )  # fmt: skip
        compared = compare_experiment(out)
        measure = "joint accuracy (in_distribution)"
        assert compared.warnings == [f"Scores measured under different conditions ({name}): do not compare {measure}"]
        assert {answer["verdict"] for answer in compared.answers} == {"unknown"}
        assert f"measured under different conditions ({name})" in answers(compared)["rate"]["sentence"]
        assert {row["verdict"] for row in compared.effects} == {"unknown", "equal"}, "held-out loss: no such condition"


def test_machine_and_number_of_prompts_do_not_forbid_a_comparison(recipe: Any, tmp_path: Path) -> None:
    score = lambda rate, depth, seed: {"none": 0.1, "high": 0.9}[rate] + 0.01 * seed * (rate == "high")  # noqa: E731
    device = lambda rate, depth, seed: "cpu" if rate == "none" else "cuda"  # noqa: E731
    prompts = lambda rate, depth, seed: 100 + seed  # noqa: E731
    out = experiment(
        recipe, tmp_path / "out", learned, accuracy=score, device=device, prompts=prompts, measure="joint accuracy"
    )
    compared = compare_experiment(out)
    assert compared.warnings == [] and answers(compared)["rate"]["verdict"] == "larger"


def test_a_score_that_is_the_same_in_every_pair_is_called_equal(recipe: Any, tmp_path: Path) -> None:
    score = lambda rate, depth, seed: 0.5 + 0.1 * seed + 0.2 * (rate == "high")  # noqa: E731
    out = experiment(recipe, tmp_path / "out", learned, accuracy=score, measure="joint accuracy")
    depth = answers(compare_experiment(out))["model.depth"]
    assert depth["verdict"] == "equal" and "no difference at all" in depth["sentence"]
    assert "would hide one of up to" in depth["sentence"], "a score has noise of its own"


def test_losses_of_other_objectives_are_not_one_measure(recipe: Any) -> None:
    paths = [
        write_run(recipe(f"{loss}-{seed}", f"objective.loss={loss}", f"seed={seed}"), accuracy=0.5 + 0.1 * seed)
        for loss in ("mse", "l1") for seed in (0, 1)
    ]  # fmt: skip
    compared = compare_runs(paths)
    assert any("not one measure: they differ in objective.loss" in text for text in compared.warnings)
    assert [answer["measure"] for answer in compared.answers] == ["joint accuracy (in_distribution)"]


def test_a_run_that_failed_and_a_loss_that_is_not_finite(recipe: Any, tmp_path: Path) -> None:
    lost = "rate=high,model.depth=4,seed=2"
    compared = compare_experiment(experiment(recipe, tmp_path / "out", learned, skip=(lost,)))
    assert compared.warnings == [f"1 of 12 runs failed: {lost}"]
    assert "1 of 6 pairs are missing" in answers(compared)["model.depth"]["sentence"]
    assert [run["status"] for run in compared.to_json()["runs"] if run["name"] == lost] == ["failed"]
    diverged = compare_experiment(
        experiment(recipe, tmp_path / "nan", lambda r, d, s: math.nan if r == "high" else 1.2)
    )
    (told,) = [text for text in diverged.warnings if "not finite at step 8" in text]
    assert told.count("rate=high") == 6
    assert "no two finished runs" in answers(diverged)["rate"]["sentence"]
    json.dumps(diverged.to_json(), allow_nan=False)


def test_many_levels_are_judged_together(recipe: Any, tmp_path: Path) -> None:
    record = Record("Which?", {"depth": ["1", "2", "3"]}, [0, 1, 2], "auto", None)
    for depth in "123":
        for seed in range(3):
            made = recipe(f"out/runs/depth={depth},seed={seed}", f"model.depth={depth}", f"seed={seed}")
            record.runs[f"depth={depth},seed={seed}"] = RunRecord({"depth": depth}, seed, [], made.plain(), "done")
            write_run(made, losses=(1.0, 0.5 + 0.1 * int(depth) * (seed + 1)))
    record.save(tmp_path / "out")
    compared = compare_experiment(tmp_path / "out")
    assert [(row["level"], row["confidence"]) for row in compared.answers] == [("2", 0.975), ("3", 0.975)]


def test_runs_by_hand_are_grouped_by_all_but_their_seed(recipe: Any) -> None:
    paths = []
    for rate in (0.1, 0.2):
        for seed in (0, 1):
            settings = (f"train.learning_rate={rate}", f"seed={seed}", f"train.save_every={seed + 1}")
            paths.append(write_run(recipe(f"r{rate}-{seed}", *settings), losses=(1.0, 0.5 + rate + 0.01 * seed)))
    compared = compare_runs(paths)
    assert {arm: len(group) for arm, group in compared.arms.items()} == {
        "train.learning_rate = 0.1": 2, "train.learning_rate = 0.2": 2
    }  # fmt: skip
    assert [answer["seeds"] for answer in compared.answers] == [2]
    assert compare_runs(paths[::2]).answers == [], "one shared seed answers nothing"


def test_runs_of_one_recipe_and_seed_stand_side_by_side(recipe: Any) -> None:
    """The same seed twice is no second seed: its interval would have no width."""
    paths = [write_run(recipe(name, f"seed={name[-1]}"), losses=(1.0, 0.5)) for name in ("a0", "b0", "c1")]
    compared = compare_runs(paths)
    assert {arm: [run.name for run in group] for arm, group in compared.arms.items()} == {
        "a0 and 1 more": ["a0", "c1"], "b0": ["b0"]
    }  # fmt: skip
    assert compared.answers == []


def test_a_loss_of_training_clips_is_called_one(recipe: Any) -> None:
    paths = [write_run(recipe("seen"), split="train"), write_run(recipe("unseen", "seed=1"))]
    compared = compare_runs(paths)
    said = "seen: no clip is held out (data.validation = 0); the loss is of training clips"
    assert said in compared.warnings and not any(text.startswith("unseen") for text in compared.warnings)
    assert [run["heldout_split"] for run in compared.to_json()["runs"]] == ["train", "validation"]


def test_one_run_and_what_it_lacks(recipe: Any, tmp_path: Path) -> None:
    path = write_run(recipe("short"), losses=(1.0,))
    assert compare_runs([path]).warnings == []
    record = Recipe.load(path / "recipe.yaml").model_copy(update={"run_dir": tmp_path / "empty"})
    (tmp_path / "empty").mkdir()
    record.save(tmp_path / "empty" / "recipe.yaml")
    compared = compare_runs([path, tmp_path / "empty"])
    assert [text for text in compared.warnings if text.startswith("empty: ")] == [
        "empty: not finished: step 0 of 8", "empty: no held-out loss was measured", "empty: no usable checkpoint"
    ]  # fmt: skip
    assert any(text.startswith("Different data") for text in compared.warnings)


def test_runs_of_one_name_are_told_apart(recipe: Any) -> None:
    paths = [write_run(recipe(f"{folder}/run", f"seed={seed}")) for seed, folder in enumerate("ab")]
    assert [run.name for run in compare_runs(paths).runs] == [str(path) for path in paths]


def test_what_cannot_be_compared(recipe: Any, tmp_path: Path) -> None:
    path = write_run(recipe("run"))
    with pytest.raises(UsageError, match="given twice"):
        compare_runs([path, path.parent / "." / "run"])
    with pytest.raises(UsageError, match="not a run directory"):
        compare_runs([path, path / "checkpoints"])
    out = experiment(recipe, tmp_path / "out", learned, seeds=(0,))
    with pytest.raises(UsageError, match="by itself"):
        compare_runs([out, path])
    (out / "experiment.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="damaged"):
        compare_runs([out])


def test_one_seed_is_not_enough_and_an_unknown_measure_is_said(recipe: Any, tmp_path: Path) -> None:
    compared = compare_experiment(experiment(recipe, tmp_path / "out", learned, seeds=(0,), measure="beauty"))
    assert compared.warnings == ["measure: 'beauty' was not measured; there are: held-out loss"]
    compared = compare_experiment(experiment(recipe, tmp_path / "out", learned, seeds=(0,)))
    assert "add seeds" in answers(compared)["rate"]["sentence"]
