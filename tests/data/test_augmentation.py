"""Variants of a clip: drawn from its content alone, the same for all its frames, and never against its caption."""

from __future__ import annotations

import colorsys
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from reelwright.data.augmentation import (
    Augmentation,
    ColourJitter,
    Crop,
    Draw,
    Facts,
    Flip,
    Frames,
    Hue,
    Speed,
    Window,
    apply,
    check_augment,
    plan_variant,
)
from reelwright.data.config import DataConfig, add_augmentation
from reelwright.data.decode import probe, read_window
from reelwright.data.resize import fit
from reelwright.recipe import Recipe
from reelwright.types import Size, UsageError

SIZE = Size(5, 24, 32)
FACTS = Facts("ab" * 32, ("a ball rolls",), Window(SIZE, 8.0, 0.5), 0.0, 3.0, 640, 480)
ALL: tuple[Augmentation, ...] = (Flip(probability=1.0), ColourJitter(), Hue(degrees=60), Crop(), Speed())


def frames_of(size: Size = SIZE, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (*size.tuple, 3), dtype=np.uint8)


def made(augmentation: Augmentation, variant: int = 1, facts: Facts = FACTS) -> tuple[Any, Frames, Frames]:
    """(plan, pictures of the window it reads, what comes out)"""
    plan = plan_variant([augmentation], facts, variant)
    frames = frames_of(plan.window.size)
    return plan, frames, apply(plan, frames)


def luma(frames: Frames) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


# -- plans


def test_variant_0_is_the_plain_window() -> None:
    plan = plan_variant(ALL, FACTS, 0)
    assert (plan.window, plan.size, plan.steps, plan.key) == (FACTS.window, SIZE, (), "")
    frames = frames_of()
    assert np.array_equal(apply(plan, frames), frames)


def test_a_plan_depends_on_content_and_variant_alone() -> None:
    keys = {plan_variant(ALL, FACTS, variant).key for variant in range(1, 30)}
    assert len(keys) == 29
    assert keys == {plan_variant(ALL, replace(FACTS, captions=("a dog barks",)), v).key for v in range(1, 30)}
    assert keys.isdisjoint(plan_variant(ALL, replace(FACTS, sha256="cd" * 32), v).key for v in range(1, 30))
    later = replace(FACTS, window=replace(FACTS.window, start_seconds=1.0))
    assert keys.isdisjoint(plan_variant(ALL, later, v).key for v in range(1, 30))


def test_one_more_augmentation_changes_no_draw_of_the_others() -> None:
    frames = frames_of()
    for variant in range(1, 6):
        alone = apply(plan_variant([ColourJitter()], FACTS, variant), frames)
        both = apply(plan_variant([Flip(probability=1.0), ColourJitter()], FACTS, variant), frames)
        assert np.array_equal(both, alone[:, :, ::-1])


def test_the_key_knows_settings_that_change_pixels_and_no_others() -> None:
    def key(*augment: Augmentation, facts: Facts = FACTS) -> str:
        return plan_variant(augment, facts, 1).key

    plain = key(Crop(), ColourJitter())
    assert plain and plain == key(Crop(guard=("nothing of the kind",)), ColourJitter(probability=1 - 1e-9))
    changed = {
        key(Crop(smallest=0.5), ColourJitter()), key(Crop(), ColourJitter(contrast=0.2)), key(Crop()),
        key(ColourJitter()),
        key(ColourJitter(), Crop()), key(Crop(), ColourJitter(), facts=replace(FACTS, width=1000)), plain,
    }  # fmt: skip
    assert len(changed) == 7


def test_a_new_version_makes_a_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_variant([Flip(probability=1.0)], FACTS, 1).key
    monkeypatch.setattr(Flip, "version", 2)
    assert plan_variant([Flip(probability=1.0)], FACTS, 1).key not in ("", before)


def test_what_changes_nothing_is_the_plain_clip() -> None:
    """So it has the plain clip's latents and is neither encoded nor stored again."""
    guarded = replace(FACTS, captions=("a ball rolls to the left",))
    image = replace(FACTS, window=replace(FACTS.window, size=Size(1, 24, 32)))
    for augmentation, facts in ((Flip(probability=1.0), guarded), (Speed(), image)):
        assert plan_variant([augmentation], facts, 1) == plan_variant([], facts, 0)
    chances = [plan_variant([Flip(probability=0.25)], FACTS, variant).key == "" for variant in range(2000)]
    assert 0.70 < np.mean(chances) < 0.80


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: a.kind)
def test_all_frames_of_a_clip_are_changed_alike(augmentation: Augmentation) -> None:
    facts = replace(FACTS, captions=("something",))
    for variant in range(1, 8):
        plan = plan_variant([augmentation], facts, variant)
        still = np.repeat(frames_of(Size(1, plan.window.size.height, plan.window.size.width)), SIZE.frames, axis=0)
        out = apply(plan, still)
        assert out.shape == (*SIZE.tuple, 3) and out.dtype == np.uint8 and out.flags.c_contiguous
        assert all(np.array_equal(out[0], frame) for frame in out[1:])


# -- guards


@pytest.mark.parametrize(
    ("augmentation", "caption", "spared"),
    [
        (Flip(), "a ball rolls from LEFT to right.", True),
        (Flip(), "the left-hand lane", True),
        (Flip(), "it turns counter-clockwise", True),
        (Flip(), "a sign saying 'open'", True),
        (Flip(), "a shop with text on its window", True),
        (Flip(), "a bright cleft in the rock", False),  # only whole words
        (Flip(), "a ball rolls", False),
        (Speed(), "a man walks SLOWLY", True),
        (Speed(), "a time-lapse of clouds", True),
        (Speed(), "breakfast is served", False),
        (Hue(), "a red circle", True),
        (Hue(), "a hundred people", False),
        (Crop(), "a lamp in the corner", True),
        (Crop(), "close-up of a face", True),
        (ColourJitter(), "a red circle moves left, slowly", False),
        (Flip(guard=("north west",)), "a North-West wind", True),
        (Flip(guard=("north west",)), "north of the west", False),
        (Flip(guard=()), "left", False),
    ],
)
def test_captions_keep_augmentations_away(augmentation: Augmentation, caption: str, spared: bool) -> None:
    assert augmentation.spares([caption]) is spared
    assert augmentation.spares(["a cat", caption]) is spared, "one of several captions is enough"


def test_a_phrase_does_not_reach_over_two_captions() -> None:
    assert not Flip(guard=("north west",)).spares(["far north", "west wind"])


# -- flip, colour, hue


def test_flip_mirrors_columns() -> None:
    _, frames, out = made(Flip(probability=1.0))
    assert np.array_equal(out, frames[:, :, ::-1]) and not np.array_equal(out, frames)


def test_colour_is_what_it_says() -> None:
    """Against brightness, contrast and saturation done one after the other in float64."""
    jitter = ColourJitter(brightness=0.2, contrast=0.3, saturation=0.5)
    for variant in range(1, 12):
        plan, frames, out = made(jitter, variant)
        draw = plan.steps[0][1]
        factors = [
            draw.uniform(n, 1 - s, 1 + s) for n, s in (("brightness", 0.2), ("contrast", 0.3), ("saturation", 0.5))
        ]
        assert all(abs(f - 1) <= s for f, s in zip(factors, (0.2, 0.3, 0.5), strict=True))
        wanted = frames.astype(np.float64) * factors[0]
        middle = luma(wanted).mean()
        wanted = middle + factors[1] * (wanted - middle)
        grey = luma(wanted)[..., None]
        wanted = np.clip(grey + factors[2] * (wanted - grey), 0, 255)
        assert np.abs(out - wanted).max() <= 0.5 + 1e-2


def test_colour_of_nothing_is_the_same_picture() -> None:
    _, frames, out = made(ColourJitter(brightness=0, contrast=0, saturation=0))
    assert np.array_equal(out, frames)


def test_hue_turns_chroma_and_keeps_luma() -> None:
    soft = (96 + frames_of() // 4).astype(np.uint8)  # far enough from black and white for nothing to be clipped
    for variant in range(1, 8):
        plan = plan_variant([Hue(degrees=90)], FACTS, variant)
        out = apply(plan, soft)
        assert np.abs(luma(out) - luma(soft)).max() < 0.6
        angle = plan.steps[0][1].uniform("degrees", -90, 90)
        for before, after in ((soft[0, 3, 4], out[0, 3, 4]), (soft[2, 20, 9], out[2, 20, 9])):
            _, i, q = colorsys.rgb_to_yiq(*(before / 255))
            turned = (complex(i, q) * np.exp(1j * np.radians(angle))) * 255
            _, i, q = colorsys.rgb_to_yiq(*(after / 255))
            assert abs(complex(i, q) * 255 - turned) < 2.5
    grey = np.repeat(frames_of()[..., :1], 3, axis=-1)
    assert np.abs(apply(plan_variant([Hue(degrees=180)], FACTS, 1), grey).astype(int) - grey).max() <= 1


# -- crop and speed


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(4, 200),
    st.integers(4, 200),
    st.floats(0.25, 1),
    st.integers(1, 9),
)
def test_a_crop_always_fits(width: int, height: int, w: int, h: int, smallest: float, variant: int) -> None:
    facts = replace(FACTS, width=width, height=height, window=Window(Size(1, h, w), 8.0, 0.0))
    plan = plan_variant([Crop(smallest=smallest)], facts, variant)
    assert h <= plan.window.size.height <= 4 / smallest * h + 1
    assert w <= plan.window.size.width <= 4 / smallest * w + 1
    assert min(plan.window.size.height / h, plan.window.size.width / w) <= 1 / smallest + 0.2
    assert apply(plan, frames_of(plan.window.size)).shape == (1, h, w, 3)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (240, 320), (200, 200), (960, 240)])
def test_a_crop_is_a_part_of_the_whole_source_and_never_stretched(width: int, height: int) -> None:
    """The source's colours are its own coordinates, so a crop tells from where it is and at which scale."""
    rows, columns = np.mgrid[:height, :width]
    source = np.stack([columns * 255 / width, rows * 255 / height, rows * 0], axis=-1).astype(np.uint8)
    facts = replace(FACTS, width=width, height=height, window=Window(Size(1, 48, 48), 8.0, 0.0))
    lefts, tops, sides = [], [], []
    for variant in range(1, 150):
        plan = plan_variant([Crop(smallest=0.5)], facts, variant)
        read = fit(source, plan.window.size.height, plan.window.size.width)
        out = apply(plan, read[None])[0].astype(float)
        x, y = out[..., 0].mean(axis=0) * width / 255, out[..., 1].mean(axis=1) * height / 255
        across, down = (x[-4:].mean() - x[:4].mean()) / 44, (y[-4:].mean() - y[:4].mean()) / 44  # source pixels a pixel
        assert across == pytest.approx(down, rel=0.12)
        lefts.append(x[0] / width)
        tops.append(y[0] / height)
        sides.append(48 * (across + down) / 2 / min(width, height))
    assert min(sides) < 0.6 and max(sides) > 0.9 and max(sides) < 1.1
    assert min(lefts) < 0.03 and min(tops) < 0.03, "it reaches the source's left and upper edge"
    assert max(left + side * min(width, height) / width for left, side in zip(lefts, sides, strict=True)) > 0.95


@given(st.integers(2, 40), st.floats(0.5, 60), st.floats(0, 10), st.floats(0, 10), st.floats(0, 5), st.integers(1, 99))
def test_speed_stays_within_the_clip(
    frames: int, fps: float, before: float, after: float, earliest: float, variant: int
) -> None:
    plain = (frames - 1) / fps
    window = Window(Size(frames, 8, 8), fps, earliest + before)
    facts = replace(FACTS, window=window, earliest_seconds=earliest, latest_seconds=earliest + before + plain + after)
    read = plan_variant([Speed()], facts, variant).window
    factor = fps / read.fps
    assert 0.8 - 1e-9 <= factor <= 1.25 + 1e-9
    end = read.start_seconds + (frames - 1) / read.fps
    assert read.start_seconds >= earliest - 1e-9 and end <= facts.latest_seconds + 1e-6
    assert read.start_seconds <= window.start_seconds, "it begins earlier only where it would run past the end"
    if window.start_seconds + plain * factor <= facts.latest_seconds:
        assert read.start_seconds == pytest.approx(window.start_seconds, abs=1e-9)


def test_speed_is_drawn_both_ways() -> None:
    factors = [8.0 / plan_variant([Speed()], FACTS, variant).window.fps for variant in range(1, 400)]
    assert min(factors) < 0.82 and max(factors) > 1.22
    assert abs(np.mean(np.log(factors))) < 0.02


def test_every_variant_of_a_real_clip_can_be_read(shapes_clips: Path) -> None:
    video = sorted((shapes_clips / "videos").glob("*.mp4"))[0]
    info = probe(video)
    size = Size(6, 32, 32)
    last = float(info.timestamps[-1]) - info.first_seconds
    facts = Facts("ab" * 32, ("a shape",), Window(size, 8.0, 0.0), 0.0, last, info.width, info.height)
    plain = read_window(video, size, 8.0, 0.0, info)
    different = 0
    for variant in range(1, 25):
        plan = plan_variant([Flip(), ColourJitter(), Hue(), Crop(), Speed()], facts, variant)
        window = plan.window
        out = apply(plan, read_window(video, window.size, window.fps, window.start_seconds, info))
        assert out.shape == plain.shape
        different += not np.array_equal(out, plain)
    assert different == 24


# -- the extension point


class Noisy(Augmentation):
    type: Literal["noisy"] = "noisy"
    sigma: float = Field(default=8.0, gt=0)

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        noise = draw.generator("noise").normal(0, self.sigma, frames.shape)
        return np.clip(frames + noise, 0, 255).astype(np.uint8)


class Broken(Augmentation):
    type: Literal["broken"] = "broken"
    how: Literal["float", "short", "narrow"] = "float"

    def change(self, frames: Frames, size: Size, draw: Draw) -> Frames:
        wrong: dict[str, Any] = {"float": frames.astype(np.float32), "short": frames[1:], "narrow": frames[:, :, 1:]}
        return wrong[self.how]


def test_noise_by_the_draws_own_generator_is_repeatable() -> None:
    plan, frames, out = made(Noisy())
    assert np.array_equal(out, apply(plan, frames)) and 5 < np.std(out.astype(float) - frames) < 9
    assert not np.array_equal(out, apply(plan_variant([Noisy()], FACTS, 2), frames))


@pytest.mark.parametrize("how", ["float", "short", "narrow"])
def test_a_broken_augmentation_is_named(how: Any) -> None:
    with pytest.raises(TypeError, match="Broken"):
        made(Broken(how=how))


# -- settings


def config(**values: Any) -> DataConfig:
    return DataConfig.parse({"path": "clips", **values})


def test_settings_are_parsed_by_type() -> None:
    parsed = config(augment=[{"type": "flip"}, {"type": "crop", "smallest": 0.7, "guard": ["door"]}], variants=3)
    assert parsed.augment == [Flip(), Crop(smallest=0.7, guard=("door",))]
    assert DataConfig.parse(parsed.plain()) == parsed
    assert (config().augment, config().variants) == ([], 1), "no augmentation unless asked for"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"augment": [{"type": "flip"}]}, r"\[flip\] has no effect with variants = 1"),
        ({"variants": 3}, "variants = 3 without augment would encode the same clip 3 times"),
        ({"augment": [{"type": "flip"}, {"type": "flip"}], "variants": 2}, "names flip twice"),
        ({"augment": [{"type": "speed"}], "variants": 2, "window": "spread"}, "speed needs data.fps"),
        ({"augment": [{"type": "crop", "smallest": 0}], "variants": 2}, "smallest"),
        ({"augment": [{"type": "crop", "size": 3}], "variants": 2}, "unknown key"),
    ],
)
def test_contradictions_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config(**values)


def test_check_takes_what_makes_sense() -> None:
    check_augment([], 1, "spread")
    check_augment([Flip(), Crop()], 4, "spread")
    check_augment([Speed()], 2, "uniform")


def test_a_decoding_child_needs_no_torch() -> None:
    code = "import sys, reelwright.data.augmentation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_augmentation_lists_the_known_and_the_nearest():
    with pytest.raises(UsageError, match=r"augment\.0\.type: 'flp' is not one of them; known types: flip.*'flip'"):
        DataConfig.parse({"path": "x", "augment": [{"type": "flp"}], "variants": 2})


# -- one made known by a script


@pytest.fixture
def _known_as_before():
    before = DataConfig.model_fields["augment"].annotation
    yield
    DataConfig.model_fields["augment"].annotation = before
    for config in (DataConfig, Recipe):
        config.model_rebuild(force=True)


@pytest.mark.usefixtures("_known_as_before")
def test_an_added_augmentation_is_parsed_like_the_others():
    settings = {"path": "x", "augment": [{"type": "noisy", "sigma": 3}, {"type": "flip"}], "variants": 2}
    with pytest.raises(UsageError, match=r"augment\.0\.type: 'noisy' is not one of them; known types: flip, [^\n]*$"):
        DataConfig.parse(settings)
    add_augmentation(Noisy)
    parsed = DataConfig.parse(settings)
    assert parsed.augment == [Noisy(sigma=3), Flip()] and DataConfig.parse(parsed.plain()) == parsed
    recipe = Recipe.parse({"run_dir": "r", "cache_dir": "c", "data": settings})
    assert recipe.data.augment == parsed.augment and Recipe.parse(recipe.plain()) == recipe
    with pytest.raises(UsageError, match=r"augment\.0\.type: 'nosy'.* speed, noisy; did you mean 'noisy'"):
        Recipe.parse({"run_dir": "r", "cache_dir": "c", "data": {**settings, "augment": [{"type": "nosy"}]}})
    with pytest.raises(UsageError, match=r"augment\.0\.sigma = -1"):
        DataConfig.parse({**settings, "augment": [{"type": "noisy", "sigma": -1}]})


@pytest.mark.usefixtures("_known_as_before")
def test_added_again_it_takes_the_place_of_the_earlier_one():
    class Louder(Noisy):
        version = 2

    add_augmentation(Noisy)
    add_augmentation(Louder)
    (parsed,) = DataConfig.parse({"path": "x", "augment": [{"type": "noisy"}], "variants": 2}).augment
    assert type(parsed) is Louder
    assert plan_variant([Louder()], FACTS, 1).key != plan_variant([Noisy()], FACTS, 1).key


def test_an_augmentation_that_cannot_be_named_is_refused():
    class Nameless(Augmentation):
        pass

    class Loose(Augmentation):
        type: str = "loose"

    class Mirror(Flip):
        pass

    before = DataConfig.model_fields["augment"].annotation
    for augmentation, said in (
        (Nameless, "Nameless: has no type"),
        (Loose, "Loose: has no type"),
        (Mirror, "Mirror: type = 'flip' is that of one of the package's"),
    ):
        with pytest.raises(ValueError, match=said):
            add_augmentation(augmentation)
    assert DataConfig.model_fields["augment"].annotation == before
