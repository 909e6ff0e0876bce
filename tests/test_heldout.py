from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from reelwright.bundle import DenoisingLoss
from reelwright.data.cache import Cache
from reelwright.data.dataset import CachedDataset, Manifest, PreparedSample
from reelwright.data.fingerprints import latent_key, text_key
from reelwright.heldout import fixed_losses, held_out_loss
from reelwright.randomness import keyed_normal
from reelwright.types import Bundle, Size
from tiny_models import CAPTIONS, shake, tiny_bundle, tiny_recipe

CPU = torch.device("cpu")


def prepared(root: Path, bundle: Bundle, count: int = 11) -> Manifest:
    """Clips of two sizes, each with two captions; every fourth is held out."""
    cache, samples = Cache(root), []
    texts = {text: text_key(text, "tiny") for text in (*CAPTIONS, "")}
    for text, key in texts.items():
        cache.put(key, "text", {"tokens": bundle.text.tokenize([text]).values[0].to(torch.int32)})
    for index in range(count):
        latent = Size(2, 2, 2) if index % 2 else Size(1, 2, 2)
        key = latent_key(f"{index:064x}", 0.0, Size(8, 16, 16), 8.0, "tiny", "float32")
        mean = keyed_normal((bundle.codec.channels, *latent.tuple), "mean", index)
        cache.put(key, "latent", {"mean": mean, "logvar": torch.ones_like(mean)})
        captions = (CAPTIONS[index % 4], CAPTIONS[(index + 1) % 4])
        samples.append(
            PreparedSample(
                index,
                f"{index}.mp4",
                0,
                0.0,
                captions,
                "validation" if index % 4 == 1 else "train",
                Size(latent.frames * 4, 16, 16),
                latent,
                (key,),
                tuple(texts[caption] for caption in captions),
            )  # fmt: skip
        )
    cache.pack()
    return Manifest("f00d", tuple(samples), (), "tiny", "tiny", texts[""])


@pytest.fixture
def made(tmp_path: Path) -> tuple[DenoisingLoss, CachedDataset, CachedDataset]:
    bundle = tiny_bundle(tiny_recipe(tmp_path))
    module = DenoisingLoss(bundle)
    shake(module)
    manifest = prepared(tmp_path / "cache", bundle)
    cache = Cache(tmp_path / "cache")
    return module, CachedDataset(cache, manifest, "train"), CachedDataset(cache, manifest, "validation")


Made = tuple[DenoisingLoss, CachedDataset, CachedDataset]


def test_two_calls_give_one_value_whatever_was_drawn_between(made: Made) -> None:
    module, training, _ = made
    one = held_out_loss(module, training, CPU, num_clips=6, num_times=4, batch_size=3)
    torch.manual_seed(3)
    torch.randn(10)
    module.train()
    assert held_out_loss(module, training, CPU, num_clips=6, num_times=4, batch_size=3) == one


def test_the_batch_size_does_not_matter(made: Made) -> None:
    module, training, _ = made
    values = [held_out_loss(module, training, CPU, 8, 3, batch_size) for batch_size in (1, 2, 5, 64)]
    for other in values[1:]:
        assert other["heldout_loss"] == pytest.approx(values[0]["heldout_loss"], rel=1e-5)
        assert other["heldout_by_time"] == pytest.approx(values[0]["heldout_by_time"], rel=1e-5)
        assert other["heldout_clips"] == 8


def test_it_differs_where_the_weights_differ_and_is_better_for_better_ones(made: Made) -> None:
    module, training, _ = made
    before = held_out_loss(module, training, CPU, 8, 3, 8)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    times = torch.tensor([1 / 6, 0.5, 5 / 6], dtype=torch.float64)
    for indices in list(training.buckets().values()) * 4:
        batch = training.load([(index, 0) for index in indices], seed=0)
        with torch.enable_grad():
            loss = fixed_losses.__wrapped__(module, batch, times, CPU).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert held_out_loss(module, training, CPU, 8, 3, 8)["heldout_loss"] < 0.95 * before["heldout_loss"]


def test_the_value_is_the_mean_over_clips_and_quantiles(made: Made) -> None:
    """Against the definition: the posterior's mean, each clip's own fixed noise, t at (k + 1/2) / times."""
    module, _, validation = made
    found = held_out_loss(module, validation, CPU, num_clips=99, num_times=4, batch_size=2)
    rows = []
    for index in sorted(validation.samples):
        batch = validation.load([(index, 0)], seed=0)
        x0 = batch.latents.mean
        row = []
        for number in range(4):
            t = torch.tensor([(number + 0.5) / 4])
            noise = keyed_normal(tuple(x0.shape[1:]), "held-out", index, number)[None]
            with torch.no_grad():
                row.append(float(module(x0, noise, t, batch.text)))
        rows.append(row)
    expected = torch.tensor(rows, dtype=torch.float64)
    assert found["heldout_times"] == [0.125, 0.375, 0.625, 0.875]
    assert found["heldout_loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found["heldout_by_time"] == pytest.approx(expected.mean(dim=0).tolist(), rel=1e-5)
    assert found["heldout_clips"] == len(rows) == 3
    spread = float(expected.mean(dim=1).std()) / math.sqrt(3) * 4.302653  # Student's t, 2 degrees of freedom
    assert found["heldout_high"] - found["heldout_loss"] == pytest.approx(spread, rel=1e-4)
    assert found["heldout_loss"] - found["heldout_low"] == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize(
    ("override", "times"),
    [
        ("objective.schedule=flow", [0.25, 0.75]),
        ("objective.time_sampling=logit_normal", [0.337492, 0.662508]),
    ],
)
def test_times_are_quantiles_of_the_training_times(tmp_path: Path, override: str, times: list[float]) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path, override))
    manifest = prepared(tmp_path / "cache", bundle)
    dataset = CachedDataset(Cache(tmp_path / "cache"), manifest, "train")
    found = held_out_loss(DenoisingLoss(bundle), dataset, CPU, 2, 2, 2)
    assert found["heldout_times"] == pytest.approx(times, abs=1e-5)


def test_the_split_is_named(made: Made) -> None:
    module, training, validation = made
    assert held_out_loss(module, training, CPU, 2, 1, 2)["heldout_split"] == "train"
    assert held_out_loss(module, validation, CPU, 2, 1, 2)["heldout_split"] == "validation"


def test_no_more_clips_than_asked_for_and_no_gradient(made: Made) -> None:
    module, training, _ = made
    for count in (1, 3, 5, 8, 100):
        assert held_out_loss(module, training, CPU, count, 1, 2)["heldout_clips"] == min(count, len(training))
    batch = training.load([(next(iter(training.samples)), 0)], seed=0)
    losses = fixed_losses(module, batch, torch.tensor([0.5, 0.9]), CPU)
    assert losses.shape == (1, 2) and not losses.requires_grad
    one = held_out_loss(module, training, CPU, 1, 2, 2)
    assert (one["heldout_low"], one["heldout_high"]) == (-math.inf, math.inf), "one clip has no interval"
