from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from reelwright.bundle import build_bundle
from reelwright.config import apply_override
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.models.codec import AutoencoderKLConfig, PCACodecConfig, PixelCodecConfig
from reelwright.recipe import DEFAULT_TYPES, MAY_CHANGE, Recipe
from reelwright.resume import settle
from reelwright.types import Compression, Size, UsageError
from tiny_models import fitted_parts, tiny_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def parse(*overrides: str) -> Recipe:
    values: dict[str, Any] = {"run_dir": "r", "cache_dir": "c", "data": {"path": "d"}}
    for override in overrides:
        apply_override(values, override)
    return Recipe.parse(values)


def dotted_fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        kinds: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if hasattr(kind, "model_fields")]
        names |= set().union(*(dotted_fields(t, f"{prefix}{name}.") for t in inner)) if inner else {prefix + name}
    return names


def test_there_are_recipes() -> None:
    assert {"shapes-cpu.yaml", "eight-clips.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_sizes_fit_its_codec(path: Path) -> None:
    recipe = Recipe.load(path)
    # Weights of a hub are not asked for here: Stable Diffusion's kind of autoencoder makes one latent of 8 x 8 pixels.
    wan, ltx = Compression(4, 8, 8, causal=True), Compression(8, 32, 32, causal=True)
    known = {"svd": Compression(1, 8, 8), "wan": wan, "ltx": ltx}
    if isinstance(recipe.codec, AutoencoderKLConfig):
        compression = Compression(1, 8, 8)
    else:
        compression = known.get(recipe.model.type) or recipe.codec.build().compression
    for size in recipe.data.sizes:
        compression.latent_size(size)
    commands = [line for line in path.read_text().splitlines() if line.startswith("#   reelwright")]
    assert any(f"train recipes/{path.name}" in line for line in commands), "the head comment says how to run it"
    assert all(str(recipe.run_dir) in line for line in commands if " evaluate " in line or " generate " in line)


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["model.depht=3"], "model.depht=3"),
        (["seed=3", "train.steps=many", "model.width=64"], "train.steps=many"),
        (["model.width=30", "seed=4", "model.heads=4"], "model.width=30 model.heads=4"),  # of what both are part of
        (["model={type: nothing}"], "model={type: nothing}"),
        (
            ["objective.schedule=linear", "sampling.spacing=timesteps"],
            "objective.schedule=linear sampling.spacing=timesteps",
        ),
        ([], ""),
    ],
)
def test_a_mistake_of_the_command_line_names_it_beside_the_file(
    tmp_path: Path, overrides: list[str], named: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("run_dir: r\ncache_dir: c\ndata: {path: d}\n" + ("" if overrides else "sede: 1\n"))
    with pytest.raises(UsageError) as caught:
        Recipe.load(path, overrides)
    assert str(caught.value).startswith(f"{path} with {named}: " if named else f"{path}: unknown key 'sede'")


def test_a_group_without_type_has_the_default_one() -> None:
    recipe = parse("codec.channels=7", "text.width=64", "model.depth=3")
    assert (recipe.codec.type, recipe.text.type, recipe.model.type) == tuple(DEFAULT_TYPES.values())
    assert isinstance(recipe.codec, PCACodecConfig) and recipe.codec.channels == 7 and recipe.model.depth == 3
    assert isinstance(parse("codec.type=pixels").codec, PixelCodecConfig)


def test_an_empty_group_means_its_defaults() -> None:
    assert parse("train=", "codec=", "sampling=") == parse()
    with pytest.raises(UsageError, match="run_dir: required"):
        parse("run_dir=")


def test_epochs_stand_for_steps() -> None:
    assert parse().train.steps == 1000 and parse().train.epochs is None
    assert (parse("train.epochs=2.5").train.steps, parse("train.epochs=2.5").train.epochs) == (None, 2.5)
    assert parse("train.steps=null", "train.epochs=2") == parse("train.epochs=2")
    with pytest.raises(UsageError, match=r"steps = 5 and epochs = 2\.0: give exactly one"):
        parse("train.steps=5", "train.epochs=2")
    with pytest.raises(UsageError, match="steps = None and epochs = None: give exactly one"):
        parse("train.steps=null")


def test_an_unknown_sampler_lists_the_known() -> None:
    with pytest.raises(UsageError, match=f"sampler = 'eulr': not one of {', '.join(SAMPLERS)}"):
        parse("sampling.sampler=eulr")
    for name in SAMPLERS:
        assert parse(f"sampling.sampler={name}").sampling.sampler == name


@pytest.mark.parametrize("interval", ["[0.5, 0.5]", "[0.6, 0.4]", "[-0.1, 1]", "[0, 1.1]"])
def test_a_guidance_interval_that_is_none_is_refused(interval: str) -> None:
    with pytest.raises(UsageError, match="guidance_interval = "):
        parse(f"sampling.guidance_interval={interval}")


def test_a_terminal_sigma_wants_even_steps_of_a_flow() -> None:
    assert parse("sampling.shift_terminal=0.1").sampling.shift_terminal == 0.1
    with pytest.raises(UsageError, match=r"shift_terminal = 0\.1 wants objective\.schedule = 'flow', not 'linear'"):
        parse("sampling.shift_terminal=0.1", "objective.schedule=linear", "objective.prediction=v")
    with pytest.raises(UsageError, match=r"shift_terminal = 0\.1 has no effect with spacing = 'karras'"):
        parse("sampling.shift_terminal=0.1", "sampling.spacing=karras", "objective.schedule=edm")
    with pytest.raises(UsageError, match="shift_terminal"):
        parse("sampling.shift_terminal=1")


def test_whole_timesteps_want_a_flow() -> None:
    assert parse("sampling.spacing=timesteps").sampling.spacing == "timesteps"
    with pytest.raises(UsageError, match=r"spacing = 'timesteps' wants objective\.schedule = 'flow', not 'linear'"):
        parse("sampling.spacing=timesteps", "objective.schedule=linear", "objective.prediction=v")
    with pytest.raises(UsageError, match=r"shift_terminal = 0\.1 has no effect with spacing = 'timesteps'"):
        parse("sampling.shift_terminal=0.1", "sampling.spacing=timesteps")


@pytest.mark.parametrize(
    "override, said",
    [
        ("text={type: native}", r"text\.type = native: model\.mode = image starts from a picture"),
        ("codec={type: pca}", r"codec\.type = pca: model\.mode = image needs the autoencoder"),
    ],
)
def test_a_model_that_sees_pictures_takes_no_captions_and_its_own_codec(override: str, said: str) -> None:
    svd = ("model.type=svd", "model.mode=image", "model.model=someone/svd")
    assert parse(*svd).text.type == "clip_image"
    with pytest.raises(UsageError, match=said):
        parse(*svd, override)


def test_a_subfolder_that_is_left_empty_is_named() -> None:
    with pytest.raises(UsageError, match=r"model\.subfolder"):
        parse("model.type=wan", "model.model=someone/wan", "model.subfolder=null")


def test_what_may_change_are_fields_there_are() -> None:
    fields = dotted_fields(Recipe)
    assert "train.learning_rate" in fields and "codec.block" in fields, "the walk reaches leaves and unions"
    assert fields >= MAY_CHANGE
    assert {"train.steps", "train.epochs", "train.save_every"} <= MAY_CHANGE
    assert not MAY_CHANGE & {"train.learning_rate", "train.batch_size", "seed", "data.path", "train.ema"}


@pytest.mark.parametrize("overrides", [(), ("train.epochs=2",), ("data.only=[a, b]", "model.size=S"), ("seed=7",)])
def test_the_resolved_recipe_saved_and_loaded_is_itself(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = settle(parse(f"run_dir={tmp_path / 'none'}", *overrides))
    assert recipe.train.device == "cpu" or recipe.train.device == "cuda"
    assert recipe.train.precision != "auto"
    recipe.save(tmp_path / "recipe.yaml")
    loaded = Recipe.load(tmp_path / "recipe.yaml")
    assert loaded == recipe and loaded.plain() == recipe.plain()
    assert settle(loaded) == loaded


def test_the_size_is_that_of_the_data() -> None:
    assert parse("data.frames=8", "data.height=32", "data.width=48").size == Size(8, 32, 48)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.frames=9",), r"a video of 9x16x16 .*: frames = 9 does not fit the codec.*use 8 or 12"),
        (("data.height=20",), r"8x20x16 .*: height = 20 does not fit the codec.*use 16 or 24"),
        (("data.width=12",), r"8x16x12 .*: width = 12 does not fit the codec.*use 8 or 16"),
        (("model.patch=[1, 1, 2]", "data.width=24"), r"width = 3 latents do not fit model\.patch = 2"),
        (("model.patch=[4, 1, 1]",), r"frames = 2 latents do not fit model\.patch = 4"),
        (("data.buckets=[[8, 16, 16], [8, 16, 20]]",), r"8x16x20 .*: width = 20 does not fit the codec"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_axis(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    parts = fitted_parts(tiny_recipe(tmp_path))
    with pytest.raises(UsageError, match=message):
        build_bundle(tiny_recipe(tmp_path, *overrides), *parts)


def test_mixup_is_for_captions_that_are_a_mean():
    assert parse("train.mixup=0.5", "model.text_tokens=pooled").train.mixup == 0.5
    for model in ("model.text_tokens=cross", "model={type: unet3d}"):
        with pytest.raises(UsageError, match=r"train\.mixup = 0\.5: .*text_tokens = pooled; or train\.mixup = 0"):
            parse("train.mixup=0.5", model)
    parts = ("model.text_tokens=pooled", "model.parts=[2,2]")
    assert parse("train.mixup=[0.5,0]", *parts).train.mixes == (0.5, 0.0)
    assert parse("train.mixup=[0,0]", *parts).train.mixes == parse().train.mixes == ()
    for shares in ("[0.5,0,0]", "[0.5]", "[0,0,0]", "[]"):
        with pytest.raises(UsageError, match=r"train\.mixup = \[.*\]: .* model\.parts = \[2, 2\]; give as many"):
            parse(f"train.mixup={shares}", *parts)
    with pytest.raises(
        UsageError, match=r"train\.mixup = \[0\.5, 0\.0\]: .*of which there are none; set it, or give one"
    ):
        parse("train.mixup=[0.5,0]", parts[0])
