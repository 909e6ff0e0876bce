"""Where the data of a model lies now: its recipe says where it was, and a model can be moved away from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

from reelwright.config import apply_override, flatten
from reelwright.loading import LoadedModel
from reelwright.prepare import is_prepared
from reelwright.recipe import Recipe
from reelwright.types import UsageError

PLACES = ("cache_dir", "data.path", "data.videos", "data.captions", "data.only")  # of a recipe: what may have moved
Need = Literal["clips", "cache", "nothing"]  # what of a model's data a metric reads; clips are found by the cache


def placed(model: LoadedModel, places: Collection[str]) -> LoadedModel:
    """The model with its recipe naming these places, each as 'data.path=...'. UsageError for a setting that is none."""
    if not places:
        return model
    before = model.recipe.plain()
    values = model.recipe.plain()
    for place in places:
        apply_override(values, place)
    recipe = Recipe.parse(values, origin="evaluate")
    known, now = flatten(before), flatten(recipe.plain())
    if strange := [key for key, value in now.items() if known.get(key) != value and key not in PLACES]:
        raise UsageError(
            f"{strange[0]} = {now[strange[0]]}: only where things lie can be set here ({', '.join(PLACES)}); a model "
            "is measured as it was trained"
        )
    return replace(model, recipe=recipe)


def check_places(model: LoadedModel, needs: Collection[Need]) -> None:
    """UsageError, before anything is made, where what is needed is not where the model's recipe says."""
    recipe, missing = model.recipe, []
    if "clips" in needs and not recipe.data.path.exists():
        missing.append(f"data.path = {recipe.data.path} is not there")
    if {"clips", "cache"} & set(needs) and not is_prepared(recipe):
        missing.append(f"cache_dir = {recipe.cache_dir} holds nothing prepared from {recipe.data.path} by it")
    if not missing:
        return
    here = ""
    if not (recipe.data.path.is_absolute() and recipe.cache_dir.is_absolute()):
        here = f" (its paths count from the current folder, {Path.cwd()})"
    origin = Path(model.origin)
    own = origin if origin.suffix in (".yaml", ".yml") else origin / "recipe.yaml"
    command = f"reelwright prepare {own if own.is_file() else 'RECIPE'} data.path=... cache_dir=..."
    raise UsageError(
        f"{model.origin}: its recipe says {' and '.join(missing)}{here}. If the data lies elsewhere, name its places "
        f"behind the model: data.path=FOLDER cache_dir=FOLDER. If it is not prepared there: `{command}`. "
        "--metrics speed needs no data"
    )
