"""`train` and its data: several buckets, buckets derived from the data, and samples that cannot be read any more."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from reelwright.bundle import fitted_path
from reelwright.data.cache import Cache
from reelwright.data.dataset import CachedDataset
from reelwright.prepare import open_prepared, prepare
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.shapes.files import write_collection
from reelwright.train import train
from reelwright.types import Size, UserError
from reelwright.video.write import write_video

BUCKETS = "data.buckets=[[8, 32, 32], [4, 32, 32]]"
PLAIN = ("train.lr_schedule=constant", "train.evaluate_every=0")  # what a longer run does the same at first


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips of 8 frames and 12 of 4."""
    folder = tmp_path_factory.mktemp("mixed")
    captions = {}
    for frames in (8, 4):
        part = folder / f"part{frames}"
        write_collection(part, 12, frames, "s1", Size(frames, 32, 32), 8.0, write_video)
        texts = json.loads((part / "captions.json").read_text())
        captions |= {f"part{frames}/videos/{name}": text for name, text in texts.items()}
        (part / "captions.json").unlink()
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture
def on_mixed(tmp_path: Path, mixed: Path, write_recipe) -> Any:
    """`on_mixed("train.steps=4", run="a")`: the tiny recipe on a copy of the mixed collection, caches shared."""

    def load(*overrides: str, run: str = "run") -> Recipe:
        return Recipe.load(write_recipe(*overrides, folder=tmp_path / run, data=mixed, cache=tmp_path / "cache"))

    return load


def told(recipe: Recipe, **options: Any) -> list[str]:
    lines: list[str] = []
    train(recipe, say=lines.append, **options)
    return lines


def losses(recipe: Recipe) -> list[float]:
    return [record["loss"] for record in RunDirectory(recipe.run_dir).read_metrics() if "loss" in record]


def weights(recipe: Recipe, step: int) -> str:
    path = recipe.run_dir / "checkpoints" / f"step-{step:07d}" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(recipe: Recipe, keys: list[str]) -> None:
    """One bit of each of these cached items."""
    cache = Cache(recipe.cache_dir)
    for key in keys:
        found = cache.get(key)["mean"].numpy().tobytes()[:64]
        (shard,) = [
            p for p in recipe.cache_dir.rglob("*.safetensors") if p.parent.name != "fitted" and found in p.read_bytes()
        ]
        data = bytearray(shard.read_bytes())
        data[data.index(found) + 5] ^= 4
        shard.write_bytes(data)


def test_micro_batches_by_cost_change_no_result(on_mixed, monkeypatch):
    """A short clip costs half of a long one, so twice as many go together; the samples and the loss are the same."""
    settings = (BUCKETS, *PLAIN, "train.steps=4", "train.log_every=1")
    together: dict[str, list[tuple[int, int]]] = {"whole": [], "by-cost": []}
    loaded = CachedDataset.load
    for run, more in (("whole", ()), ("by-cost", ("train.micro_batch=2",))):

        def load(self: Any, items: Any, *rest: Any, run: str = run) -> Any:
            together[run].append((self.samples[items[0][0]].size.frames, len(items)))
            return loaded(self, items, *rest)

        monkeypatch.setattr(CachedDataset, "load", load)
        lines = told(on_mixed(*settings, *more, run=run))
    assert any("micro-batches of 4 (4x32x32), 2 (8x32x32)" in line for line in lines)
    assert set(together["whole"]) == {(8, 4), (4, 4)}
    assert set(together["by-cost"]) == {(8, 2), (4, 4)}
    whole, by_cost = (losses(on_mixed(*settings, run=run)) for run in together)
    assert len(whole) == 4 and by_cost == pytest.approx(whole, rel=1e-5)


def test_buckets_of_the_data_are_settled_once(on_mixed):
    """The run keeps the list, goes on with `auto` as it was given, and a later clip changes nothing."""
    auto = ("data.buckets=auto", "data.bucket_multiple=8", *PLAIN)
    first = on_mixed(*auto, "train.steps=2")
    told(first)
    saved = Recipe.load(first.run_dir / "recipe.yaml")
    assert saved.data.buckets == [(8, 32, 32), (4, 32, 32)]
    assert json.loads(fitted_path(first, "buckets").read_text()) == [[8, 32, 32], [4, 32, 32]]
    more = on_mixed(*auto, "train.steps=4")
    assert any("resuming from step-0000002" in line for line in told(more))
    assert prepare(on_mixed(*auto)).encoded == 0
    assert {sample.size.frames for sample in open_prepared(on_mixed(*auto)).training.samples.values()} == {8, 4}

    whole = on_mixed(*auto, "train.steps=4", run="whole")
    told(whole)
    assert weights(whole, 4) == weights(more, 4), "interrupted and gone on with, it is the same run"


def test_a_damaged_sample_is_named_and_another_stands_in(on_mixed):
    settings = (BUCKETS, *PLAIN, "train.max_bad_fraction=0.1", "data.validation=0", "train.steps=6")
    prepare(on_mixed(*settings))
    training = open_prepared(on_mixed(*settings)).training
    index = training.buckets()[Size(8, 32, 32)][3]
    damage(on_mixed(*settings), list(training.samples[index].latent_keys))
    whole = on_mixed(*settings, run="whole")
    lines = told(whole)
    named = [line for line in lines if "cannot be read, another stands in" in line]
    assert len(named) == 1 and training.samples[index].clip in named[0] and "does not match its checksum" in named[0]
    records = RunDirectory(whole.run_dir).read_metrics()
    assert records[-1]["unreadable_samples"] == 1

    # stopped before and after the damaged sample was met: the same stands in for it
    parts = on_mixed(*settings[:-1], "train.steps=3", run="parts")
    told(parts)
    told(on_mixed(*settings, run="parts"))
    assert weights(parts, 6) == weights(whole, 6)


def test_more_damage_than_is_allowed_stops_the_run(on_mixed):
    settings = (BUCKETS, "train.steps=8", "train.evaluate_every=0", "data.validation=0")
    recipe = on_mixed(*settings)
    prepare(recipe)
    training = open_prepared(recipe).training
    damage(recipe, list(training.samples[0].latent_keys))
    said: list[str] = []
    with pytest.raises(UserError, match=r"1 of 24 training samples cannot be read \(4.2%\), more than "):
        train(recipe, say=said.append)
    assert any(f"{training.samples[0].clip} (sample 0) cannot be read" in line for line in said)
    shutil.rmtree(recipe.cache_dir)
    assert not any("cannot be read" in line for line in told(recipe)), "made anew, it goes on"


def test_a_held_out_clip_that_does_not_read_is_left_out_of_the_figure(on_mixed):
    settings = (BUCKETS, "train.steps=2", "train.evaluate_every=2", "data.validation=0.3")
    recipe = on_mixed(*settings)
    prepare(recipe)
    validation = open_prepared(recipe).validation
    damage(recipe, list(next(iter(validation.samples.values())).latent_keys))
    told(recipe)
    (figures,) = [r for r in RunDirectory(recipe.run_dir).read_metrics() if "heldout_loss" in r]
    assert figures["heldout_clips"] == len(validation) - 1 and figures["heldout_unreadable"] == 1
