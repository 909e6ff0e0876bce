"""The form is the schema: every setting once, and what is typed comes back as a recipe or as an error at its field."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from reelwright.config import flatten
from reelwright.recipe import Recipe
from reelwright.types import UsageError
from reelwright.ui.forms import apply_changes, form_fields, form_values, read_form

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
# Settings that are text and never opened as a file; one more has to be looked at: is it a path, or a name of one?
HARMLESS_TEXT = {
    "data.columns.video", "data.columns.start", "data.columns.end", "data.columns.timestamp", "data.columns.split",
    "data.split", "data.source_pattern", "train.wandb",
}  # fmt: skip
CHECKED_TEXT = {
    "codec.model", "codec.subfolder", "text.model", "text.subfolder", "text.tokenizer_subfolder", "model.model",
    "model.subfolder",
}  # fmt: skip


@pytest.fixture
def recipe(write_recipe) -> Recipe:
    return Recipe.load(write_recipe())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_setting_of_a_recipe_has_its_field(path: Path) -> None:
    recipe = Recipe.load(path)
    known = form_values(recipe)
    for key in flatten(recipe.plain()):  # what lies in a mapping of free names is typed with it
        assert any(key == field or key.startswith(f"{field}.") for field in known), key


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_untouched_form_changes_nothing(path: Path) -> None:
    recipe = Recipe.load(path)
    assert read_form(recipe, form_values(recipe)) == ({}, {})
    assert apply_changes(recipe.plain(), {}) == recipe


def test_a_field_is_told_apart_by_key_and_type() -> None:
    fields = form_fields()
    assert len({(field.key, field.when) for field in fields}) == len(fields)
    for field in fields:
        assert field.label and "." not in field.label
        assert (field.type == "choice") == bool(field.choices)
        assert field.group == (field.key.split(".")[0] if "." in field.key else "general")


def test_text_settings_that_name_files_are_known() -> None:
    text = {field.key for field in form_fields() if field.type == "text"}
    assert text == HARMLESS_TEXT | CHECKED_TEXT


def test_what_a_field_says() -> None:
    by_key = {field.key: field for field in form_fields() if field.when is None}
    rate = by_key["train.learning_rate"]
    assert (rate.type, rate.default, rate.minimum, rate.group) == ("float", 1e-4, 0, "train")
    assert by_key["train.clip_norm"].optional and "gradient norm" in by_key["train.clip_norm"].help
    assert by_key["codec.type"].choices[:5] == ("pca", "dct", "pixels", "autoencoder", "content_motion")
    assert "pca: Principal components" in by_key["codec.type"].help
    assert by_key["data.path"].required and by_key["data.path"].type == "path"
    assert by_key["sampling.sampler"].choices[0] == "ddpm" and by_key["data.buckets"].type == "list"
    channels = next(field for field in form_fields() if field.key == "codec.channels" and field.when)
    assert channels.when == ("codec.type", "pca") and channels.minimum == 0


@pytest.mark.parametrize(
    ("key", "shown", "value"),
    [
        ("train.learning_rate", "3e-4", 3e-4), ("train.learning_rate", 1, 1.0), ("train.steps", "12", 12),
        ("train.steps", 12.0, 12), ("seed", str(2**60 + 1), 2**60 + 1), ("train.tensorboard", True, True),
        ("train.clip_norm", "", None), ("train.clip_norm", None, None), ("train.wandb", "", None),
        ("data.buckets", "[[8, 32, 32], [8, 16, 16]]", [[8, 32, 32], [8, 16, 16]]), ("train.micro_batch", "2", 2),
        ("train.micro_batch", "auto", "auto"), ("train.sample_prompts", '["no", "a: b"]', ["no", "a: b"]),
        ("data.split", "1e3", "1e3"),
        ("train.wandb", "<script>\n", "<script>\n"), ("codec.block", "[2, 8, 8]", [2, 8, 8]),
        ("sampling.sampler", "heun", "heun"), ("run_dir", "runs/new", "runs/new"),
    ],
)  # fmt: skip
def test_what_is_typed_is_what_is_meant(recipe: Recipe, key: str, shown: object, value: object) -> None:
    changes, errors = read_form(recipe, form_values(recipe) | {key: shown, "codec.channels": 8})
    assert not errors and changes.pop("codec.channels") == 8
    before = flatten(recipe.plain()).get(key)
    assert changes == ({} if before == value else {key: value})
    assert all(type(change) is type(value) for change in changes.values())
    after = flatten(apply_changes(recipe.plain(), changes).plain())
    assert after[key] == value and {k for k in after if after[k] != flatten(recipe.plain())[k]} == set(changes)


@pytest.mark.parametrize(
    ("key", "shown", "said"),
    [
        ("train.steps", "twelve", "not a number"), ("train.steps", "1.5", "whole number"),
        ("train.steps", "0", "greater"),
        ("train.steps", math.inf, "not a number"), ("train.learning_rate", "nan", "not a number"),
        ("train.steps", True, "not a number"), ("train.batch_size", "", "must be given"), ("data.fps", "-1", "greater"),
        ("data.buckets", "[[1, 2", "not valid YAML"), ("data.buckets", "[]", "at least one"), ("seed", "-1", "greater"),
        ("codec.type", "magic", "magic"), ("train.precision", "fp8", "fp32"), ("train.ema", "1", "less than"),
        ("data.path", "", "must be given"), ("sampling.steps", 10**400, "not a number"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_field(recipe: Recipe, key: str, shown: object, said: str) -> None:
    _, errors = read_form(recipe, form_values(recipe) | {key: shown})
    assert set(errors) == {key} and said in errors[key]


def test_mistakes_of_several_fields_and_of_none(recipe: Recipe) -> None:
    _, errors = read_form(recipe, form_values(recipe) | {"train.steps": 0, "train.batch_size": 0})
    assert set(errors) == {"train.steps", "train.batch_size"}
    _, errors = read_form(recipe, form_values(recipe) | {"model.heads": 5})
    assert set(errors) == {""} and errors[""].startswith("model: ")
    _, errors = read_form(recipe, {"train.stepz": 1, "__class__.x": 2})
    assert set(errors) == {"train.stepz", "__class__.x"}


def test_another_type_brings_its_own_fields(recipe: Recipe) -> None:
    changes, errors = read_form(recipe, form_values(recipe) | {"codec.type": "pixels", "codec.block": "[1, 8, 8]"})
    assert not errors and changes == {"codec.type": "pixels", "codec.block": [1, 8, 8], "codec.whiten": 0.5}
    changed = apply_changes(recipe.plain(), changes)
    assert changed.codec.type == "pixels" and changed.codec.block == (1, 8, 8)
    assert "codec.channels" not in form_values(changed)
    with pytest.raises(UsageError, match="channels"):
        apply_changes(recipe.plain(), {"codec.type": "pixels", "codec.channels": 3})


@pytest.mark.parametrize(
    "changes",
    [{"train.steps.x": 1}, {"nonsense": 1}, {"": 1}, {"train.": 1}, {".train": 1}, {"__class__": "x"}, {"train": 3},
     {"data.path": None}, {"train.steps": {"a": 1}}, {"seed": True}],
)  # fmt: skip
def test_changes_that_are_none_are_refused(recipe: Recipe, changes: dict) -> None:
    with pytest.raises(UsageError):
        apply_changes(recipe.plain(), changes)


def test_the_recipe_it_began_with_stays_as_it_was(recipe: Recipe) -> None:
    plain = recipe.plain()
    before = repr(plain)
    apply_changes(plain, {"train.steps": 3, "data.width": 48})
    assert repr(plain) == before
