"""The commands: a new experiment, its plan, and runs side by side on a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import write_run

from reelwright.config import read_yaml
from reelwright.experiments.reading import read_run
from reelwright.experiments.videos import side_by_side
from reelwright.recipe import Recipe


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    folder = tmp_path_factory.mktemp("new") / "rate"
    made = run_cli("experiment", "new", folder)
    assert made.code == 0 and f"reelwright experiment {folder}" in made.out
    return folder


def test_the_template_is_a_valid_experiment(run_cli: Any, template: Path) -> None:
    for words in ([template], [template / "experiment.yaml"], ["run", template]):
        plan = run_cli("experiment", *words, "--dry-run")
        assert plan.code == 0 and "8 runs over base.yaml" in plan.out and "train.micro_batch=8" in plan.out
    listed = json.loads(run_cli("experiment", "--dry-run", template, "--json").out)
    assert len(listed["runs"]) == 8 and {run["status"] for run in listed["runs"]} == {"waiting"}
    assert listed["runs"][0]["overrides"] == ["train.learning_rate=0", 'train.micro_batch="auto"', "seed=0"]
    assert sorted(path.name for path in template.iterdir()) == ["base.yaml", "data", "experiment.yaml", "notes.md"]
    assert template.name in (template / "notes.md").read_text()


def test_wrong_usage(run_cli: Any, template: Path, tmp_path: Path) -> None:
    again = run_cli("experiment", "new", template)
    assert again.code == 2 and "not an empty folder" in again.err
    absent = run_cli("experiment", tmp_path / "absent.yaml")
    assert absent.code == 2 and "reelwright experiment new DIR" in absent.err
    assert run_cli("compare", tmp_path).code == 2
    spec = shutil.copytree(template, tmp_path / "copy") / "experiment.yaml"
    spec.write_text(spec.read_text().replace("seeds:", "seed:"))
    result = run_cli("experiment", spec)
    assert result.code == 2 and "did you mean 'seeds'" in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("words", [("experiment",), ("experiment", "new"), ("experiment", "run"), ("compare",)])
def test_help(run_cli: Any, words: tuple[str, ...]) -> None:
    result = run_cli(*words, "--help")
    assert result.code == 0 and len(result.out.splitlines()) > 5


def test_compare_writes_a_page(run_cli: Any, write_recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    paths = []
    for name, data in {"one": "d", "two": "e"}.items():
        recipe = Recipe.load(write_recipe(), [f"run_dir={tmp_path / name}", f"model.depth={2 * len(paths) + 2}"])
        paths.append(write_run(recipe, data=data * 64, samples=(("a ball", 0), ("a square", 0))))
    result = run_cli("compare", *paths)
    assert result.code == 0 and "Warning: Different data" in result.out and "page: compare.html" in result.out
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<video") == 4 and page.index("Different data") < page.index("What differs")
    assert "model.depth" in page and "train.learning_rate" not in page.split("What differs")[1].split("Held-out")[0]
    facts = json.loads(run_cli("compare", *paths, "--out", tmp_path / "x" / "y.html", "--json").out)
    assert facts["page"].endswith("y.html") and (tmp_path / "x" / "y.html").is_file()
    assert [run["measures"]["held-out loss"] for run in facts["runs"]] == [0.5, 0.5]


def test_videos_are_made_where_samples_are_not_of_the_same(trained_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(trained_run, tmp_path / "other")
    for sidecar in (other / "samples").glob("*.json"):
        sidecar.unlink()
    arms = {"a": [read_run(trained_run)], "b": [read_run(other)]}
    assert arms["a"][0].samples and not arms["b"][0].samples
    videos, notes = side_by_side(arms, tmp_path / "made", lambda *_: None)
    ((asked, files),) = videos
    assert notes == [] and asked == f"{arms['a'][0].samples[0].prompt} · seed 0"
    assert [arm for _, arm in files] == ["a", "b"]
    first, second = (path.read_bytes() for path, _ in files)
    assert len(first) > 500 and abs(len(first) - len(second)) < 50, "the same weights at the same prompt and seed"
    named, _ = side_by_side(arms, tmp_path / "named", lambda *_: None, prompts=("a red ball", "a blue square"))
    assert [text for text, _ in named] == ["a red ball · seed 0", "a blue square · seed 0"]
    assert read_yaml(trained_run / "recipe.yaml") == read_yaml(other / "recipe.yaml"), "runs are only read"


def test_a_run_without_weights_has_no_video_and_says_so(trained_run: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(trained_run, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    shutil.rmtree(empty / "samples")
    videos, notes = side_by_side({"a": [read_run(trained_run)], "b": [read_run(empty)]}, tmp_path, lambda *_: None)
    assert [arm for _, arm in videos[0][1]] == ["a"] and "no usable checkpoint" in notes[0]
    assert side_by_side({"b": [read_run(empty)]}, tmp_path, lambda *_: None)[1][0].startswith("no videos are shown")
    assert side_by_side({}, tmp_path, lambda *_: None) == ([], [])
