"""A spec and the runs it stands for; every mistake is told before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reelwright.config import to_yaml
from reelwright.experiments.spec import load_experiment
from reelwright.types import UsageError

RATE = {"learning rate": {"none": ["train.learning_rate=0"], "high": "train.learning_rate=1e-3"}}


@pytest.fixture
def write_spec(tmp_path: Path, write_recipe: Any) -> Any:
    base = write_recipe()

    def write(**values: Any) -> Path:
        spec = {"question": "Does it matter?", "base": base.name, "factors": RATE, **values}
        path = tmp_path / "experiment.yaml"
        path.write_text(to_yaml(spec), encoding="utf-8")
        return path

    return write


def test_a_grid_has_every_level_with_every_other_and_every_seed(write_spec: Any, tmp_path: Path) -> None:
    factors = {**RATE, "model.depth": [2, 4], "objective.loss": ["mse", "l1", "huber"]}
    experiment = load_experiment(write_spec(factors=factors, seeds=[3, 5], overrides=["train.steps=4"]).parent)
    assert len(experiment.runs) == 24 == len({run.name for run in experiment.runs})
    assert experiment.factors == {
        "learning rate": ("none", "high"), "model.depth": ("2", "4"), "objective.loss": ("mse", "l1", "huber")
    }  # fmt: skip
    run = experiment.runs[-1]
    assert run.name == "learning-rate=high,model.depth=4,objective.loss=huber,seed=5"
    assert run.recipe.run_dir == tmp_path / "runs" / run.name
    assert (run.recipe.seed, run.recipe.model.depth, run.recipe.objective.loss) == (5, 4, "huber")
    assert (run.recipe.train.learning_rate, run.recipe.train.steps) == (1e-3, 4)
    assert [child for child in tmp_path.iterdir() if child.is_dir()] == [], "nothing is written"


def test_a_list_of_variants_is_one_factor(write_spec: Any) -> None:
    variants = [{"name": "as it is"}, {"name": "wide", "overrides": ["model.width=64", "model.heads=4"]}]
    experiment = load_experiment(write_spec(factors=variants))
    assert [run.name for run in experiment.runs] == ["variant=as-it-is,seed=0", "variant=wide,seed=0"]
    assert [run.recipe.model.width for run in experiment.runs] == [32, 64]


def test_lists_and_numbers_are_levels(write_spec: Any) -> None:
    factors = {"codec.block": [[4, 8, 8], [8, 8, 8]], "train.lr_schedule": ["constant", "cosine"]}
    experiment = load_experiment(write_spec(factors=factors))
    assert experiment.runs[-1].recipe.plain()["codec"]["block"] == [8, 8, 8]
    assert "codec.block=8-8-8" in experiment.runs[-1].name
    by_number = load_experiment(write_spec(factors={"rate": {0: "train.learning_rate=0", 1e-3: []}}))
    assert by_number.factors == {"rate": ("0", "0.001")}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"factor": {}}, "did you mean 'factors'"),
        ({"factors": {}}, "at least one"),
        ({"factors": {"x": {"only": ["train.steps=4"]}}}, "nothing to compare"),
        ({"factors": {"train.learning_rat": [0.1, 0.2]}}, "did you mean 'learning_rate'"),
        ({"factors": {"train.learning_rate": [-1, 0.2]}}, "greater than or equal to 0"),
        ({"factors": {"a": {"x": ["model.width"], "y": []}}}, "key=value"),
        ({"factors": {"a": {True: [], "y": ["model.depth=4"]}}}, "put it in quotes"),
        ({"factors": {"a": {"x": [], "y": ["train.learning_rate=2.0e-3"]}}}, "have the same recipe"),
        ({"factors": {"a": {"x y": [], "x-y": ["model.depth=4"]}}}, "would both be the run 'a=x-y,seed=0'"),
        ({"factors": {"model.depth": [2, 2]}}, "given twice"),
        ({"factors": [{"name": "a"}, {"name": "a", "overrides": ["model.depth=4"]}]}, "given twice"),
        ({"factors": {"a": {"x": [], "y": ["seed=4"]}}}, "under seeds:"),
        ({"overrides": ["run_dir=elsewhere"]}, "leave it out"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"seeds": []}, "at least one"),
        ({"limits": {"runs": 1}}, "2 levels x 1 seeds are 2 runs, limits.runs = 1"),
        ({"limits": {"minute": 1}}, "did you mean"),
        ({"evaluate": {"prompts": 1}}, "greater than or equal to 2"),
        ({"evaluate": {"metrics": ["shape"]}}, "known: auto, shapes"),
        ({"base": "absent.yaml"}, "absent.yaml: no such file"),
        ({"overrides": ["data.path=absent"]}, "data.path = absent: no such folder"),
        ({"factors": {"f" * 120: {"x": [], "y": ["model.depth=4"]}}}, "at most 120"),
    ],
)
def test_mistakes_are_told_before_anything_runs(write_spec: Any, tmp_path: Path, values: Any, told: str) -> None:
    path = write_spec(**values)
    with pytest.raises(UsageError) as error:
        load_experiment(path)
    assert told in str(error.value)
    assert {child.name for child in tmp_path.iterdir()} == {"recipe.yaml", "experiment.yaml"}


def test_a_recipe_that_no_level_fits_names_the_run(write_spec: Any) -> None:
    with pytest.raises(UsageError, match=r"run model.heads=5,seed=0 over recipe.yaml"):
        load_experiment(write_spec(factors={"model.heads": [2, 5]}))


def test_relative_paths_start_where_the_spec_says(write_spec: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path.parent)
    assert load_experiment(write_spec(overrides=["data.path=clips"], paths_from="spec")).folder == tmp_path
    with pytest.raises(UsageError, match="paths_from = here"):
        load_experiment(write_spec(overrides=["data.path=clips"]))


def test_no_spec_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reelwright experiment new DIR"):
        load_experiment(tmp_path)
