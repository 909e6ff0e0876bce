from __future__ import annotations

import json
from pathlib import Path

import pytest

from reelwright.project import create_project
from reelwright.recipe import Recipe
from reelwright.types import UsageError


def test_a_new_project_holds_a_valid_recipe_whose_paths_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep" / "mine"
    lines = create_project(folder)
    recipe = Recipe.load(folder / "recipe.yaml")
    monkeypatch.chdir(folder)
    assert (recipe.data.path / "videos").is_dir()
    captions = json.loads((recipe.data.path / "captions.json").read_text())
    assert captions and all(isinstance(text, str) and name.endswith(".mp4") for name, text in captions.items())
    assert recipe.run_dir.parent.is_dir()
    assert "reelwright" in (folder / "requirements.txt").read_text().split()
    assert any("reelwright inspect recipe.yaml" in line and str(folder) in line for line in lines)


def test_the_commands_in_its_recipe_name_its_own_run(tmp_path: Path) -> None:
    create_project(tmp_path / "mine")
    text = (tmp_path / "mine" / "recipe.yaml").read_text()
    commands = [line.split() for line in text.splitlines() if line.startswith("#   reelwright")]
    assert {words[2] for words in commands} == {"inspect", "prepare", "train", "generate", "evaluate"}
    run_dir = str(Recipe.load(tmp_path / "mine" / "recipe.yaml").run_dir)
    for words in commands:
        assert words[3] == (run_dir if words[2] in ("generate", "evaluate") else "recipe.yaml")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    create_project(tmp_path)
    assert (tmp_path / "recipe.yaml").is_file()


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: (p.mkdir(), (p / ".hidden").touch())])
def test_nothing_that_is_there_is_touched(tmp_path: Path, make: object) -> None:
    folder = tmp_path / "mine"
    make(folder)  # pyright: ignore[reportCallIssue]
    with pytest.raises(UsageError, match="mine: exists and is not an empty folder"):
        create_project(folder)
    assert folder.is_file() or [path.name for path in folder.iterdir()] == [".hidden"]
