"""A model that was moved away from its data: what is missing is named, no folder is made, and the ways out work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from reelwright.config import to_yaml
from reelwright.prepare import is_prepared, open_prepared
from reelwright.recipe import Recipe
from reelwright.types import UserError

HELD_OUT = ("--metrics", "heldout")


@pytest.fixture(scope="module")
def moved(tmp_path_factory, trained_run, shapes_clips, run_cli) -> Path:
    """A folder with a home, where a recipe of relative paths was trained, and the exported model elsewhere."""
    root = tmp_path_factory.mktemp("moved")
    home = root / "home"
    shutil.copytree(shapes_clips, home / "data")
    settings = ("run_dir=run", "cache_dir=cache", "data.path=data", "train.steps=2")
    recipe = Recipe.load(trained_run / "recipe.yaml", settings)
    (home / "recipe.yaml").write_text(to_yaml(recipe.plain()), encoding="utf-8")
    (root / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for words in (("train", "recipe.yaml"), ("export", "run", root / "elsewhere" / "model")):
            result = run_cli(*words)
            assert result.code == 0, result.err
    return root


def test_what_is_not_there_is_told_and_no_folder_is_made(moved, run_cli, monkeypatch):
    monkeypatch.chdir(moved / "elsewhere")
    for metrics in (("--metrics", "auto"), ("--metrics", "shapes,heldout")):
        result = run_cli("evaluate", "model", *metrics)
        assert result.code == 2 and result.out == "" and result.err.count("\n") == 1
        missing = "data.path = data is not there and cache_dir = cache holds nothing prepared from data by it"
        assert f"model: its recipe says {missing}" in result.err
        assert f"its paths count from the current folder, {moved / 'elsewhere'}" in result.err
        assert "name its places behind the model: data.path=FOLDER cache_dir=FOLDER" in result.err
        assert "reelwright prepare model/recipe.yaml data.path=... cache_dir=..." in result.err
    cache_alone = run_cli("evaluate", "model", *HELD_OUT)
    assert (
        cache_alone.code == 2 and "data is not there" not in cache_alone.err and "cache_dir = cache" in cache_alone.err
    )
    assert [path.name for path in Path().iterdir()] == ["model"]


def test_the_places_can_be_named(moved, run_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(moved / "elsewhere")
    words = ("evaluate", "model", "data.path=../home/data", f"cache_dir={moved / 'home' / 'cache'}", *HELD_OUT)
    result = run_cli(*words, "--json", tmp_path / "there.json")
    assert result.code == 0, result.err
    monkeypatch.chdir(moved / "home")
    at_home = run_cli("evaluate", "../elsewhere/model", *HELD_OUT, "--json", tmp_path / "home.json")
    assert at_home.code == 0, at_home.err
    scores = [json.loads((tmp_path / f"{name}.json").read_text())["scores"] for name in ("there", "home")]
    assert scores[0] == scores[1]
    with_clips = run_cli(*words[:3], f"cache_dir={moved / 'home' / 'cache'}", "--metrics", "dynamic", "--prompts", 2)
    assert with_clips.code == 2, "here ../home/data is another place"


def test_what_is_not_prepared_there_can_be_prepared_by_the_models_own_recipe(moved, run_cli, monkeypatch, tmp_path):
    data = shutil.copytree(moved / "home" / "data", tmp_path / "copied")
    monkeypatch.chdir(moved / "elsewhere")
    places = (f"data.path={data}", f"cache_dir={tmp_path / 'cache'}")
    refused = run_cli("evaluate", "model", *places, *HELD_OUT)
    assert refused.code == 2 and f"holds nothing prepared from {data} by it" in refused.err
    assert "is not there" not in refused.err and not (tmp_path / "cache").exists()
    assert run_cli("prepare", "model/recipe.yaml", *places).code == 0
    measured = run_cli("evaluate", "model", *places, *HELD_OUT)
    assert measured.code == 0 and "held-out loss" in measured.out, measured.err


def test_speed_needs_no_data(moved, run_cli, monkeypatch):
    monkeypatch.chdir(moved / "elsewhere")
    result = run_cli("evaluate", "model", "--metrics", "speed", "--steps", 1)
    assert result.code == 0 and "frames/s" in result.out, result.err
    assert [path.name for path in Path().iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("target", "place", "told"),
    [
        ("model", "train.steps=5", "train.steps = 5: only where things lie can be set here (cache_dir, data.path"),
        ("model", "data.frames=4", "data.frames = 4: only where things lie can be set here"),
        ("model", "data.paht=x", "did you mean 'path'"),
        ("model", "nowhere", "an override has the form key=value"),
        ("../home/data", "cache_dir=x", "cache_dir=x: ../home/data is a folder of videos, which has no recipe"),
    ],
)
def test_nothing_but_places_can_be_set(moved, run_cli, monkeypatch, target, place, told):
    monkeypatch.chdir(moved / "elsewhere")
    result = run_cli("evaluate", target, place, *HELD_OUT)
    assert result.code == 2 and told in result.err


def test_opening_a_cache_that_is_not_there_makes_none(write_recipe, tmp_path):
    recipe = Recipe.load(write_recipe(cache=tmp_path / "none"))
    assert not is_prepared(recipe)
    with pytest.raises(UserError, match=r"none: no such folder; run `reelwright prepare` with this recipe"):
        open_prepared(recipe)
    assert not (tmp_path / "none").exists()
