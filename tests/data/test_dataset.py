"""Batches of prepared samples: every draw keyed, every text padded, nothing bad let through."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from reelwright.data import cache as cache_module
from reelwright.data.cache import Cache, CacheDamaged
from reelwright.data.dataset import BadSample, CachedDataset, Manifest, PreparedSample, read_manifest, write_manifest
from reelwright.data.fingerprints import latent_key, text_key
from reelwright.data.sources import Dropped
from reelwright.data.tensorfile import TensorFile
from reelwright.types import Size, UserError

SIZE, LATENT = Size(16, 64, 64), Size(4, 8, 8)


def _prepared(
    root: Path, count: int = 12, frozen: bool = False, channels: int = 3, variants: int = 1
) -> tuple[Cache, Manifest]:
    cache, samples = Cache(root), []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        split = "validation" if index % 4 == 3 else "train"
        latents = []
        for variant in range(variants if split == "train" else 1):
            change = str(variant) if variant else ""
            latents.append(latent_key(f"{index:064x}", 0.0, SIZE, 8.0, "codec", "float32", change=change))
            mean = torch.randn(channels, *LATENT.tuple, generator=generator)
            cache.put(latents[-1], "latent", {"mean": mean, "logvar": mean.to(torch.float16)})
        captions = tuple(f"caption {index} {'very ' * n}long" for n in range(3))
        keys = tuple(text_key(caption, "text") for caption in captions)
        for n, caption in enumerate(keys):
            ids = torch.arange(1, 4 + index % 3 + n, dtype=torch.int32)
            cache.put(caption, "text", {"embeddings": ids[:, None] * torch.ones(5)} if frozen else {"tokens": ids})
        size = Size(8, 64, 64) if index % 2 else SIZE
        samples.append(
            PreparedSample(index, f"c{index}.mp4", 0, 0.0, captions, split, size, LATENT, tuple(latents), keys)
        )
    empty = text_key("", "text")
    cache.put(empty, "text", {"embeddings": torch.full((1, 5), 9.0)} if frozen else {"tokens": torch.tensor([9])})
    cache.pack()
    manifest = Manifest("f00d", tuple(samples), (Dropped("x.mp4", "empty"),), "codec", "text", empty, {"fps": 8.0})
    write_manifest(cache, manifest)
    return cache, manifest


def test_the_manifest_comes_back_whole(tmp_path: Path) -> None:
    cache, manifest = _prepared(tmp_path)
    assert read_manifest(Cache(tmp_path), "f00d") == manifest
    assert manifest.counts() == {"train": 9, "validation": 3, "dropped": 1}
    with pytest.raises(UserError, match="not prepared for this recipe"):
        read_manifest(cache, "beef")
    path = tmp_path / "manifests/f00d.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CacheDamaged, match="f00d.json: damaged"):
        read_manifest(cache, "f00d")


def test_splits_and_buckets(tmp_path: Path) -> None:
    cache, manifest = _prepared(tmp_path)
    train, validation = (CachedDataset(cache, manifest, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (9, 3)
    assert train.buckets() == {SIZE: [0, 2, 4, 6, 8, 10], Size(8, 64, 64): [1, 5, 9]}
    assert validation.buckets() == {Size(8, 64, 64): [3, 7, 11]}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_holds_what_was_put(tmp_path: Path, frozen: bool) -> None:
    cache, manifest = _prepared(tmp_path, frozen=frozen)
    dataset = CachedDataset(cache, manifest, "train", pad_id=7)
    batch = dataset.load([(0, 0), (4, 0), (2, 5)], seed=1)
    assert (batch.indices, batch.epochs) == ((0, 4, 2), (0, 0, 5))
    assert batch.latents.mean.dtype == torch.float32
    assert batch.latents.logvar is not None
    assert torch.equal(batch.latents.mean[1], cache.get(manifest.samples[4].latent_keys[0])["mean"])
    for row, (index, caption) in enumerate(zip(batch.indices, batch.captions, strict=True)):
        sample = manifest.samples[index]
        which = sample.captions.index(caption)
        length = 3 + index % 3 + which
        assert batch.text.mask[row].sum() == length
        values = batch.text.values[row] if not frozen else batch.text.values[row, :, 0]
        assert values[:length].tolist() == list(range(1, length + 1))
        assert (values[length:] == (0 if frozen else 7)).all()
    assert batch.text.values.dtype == (torch.float32 if frozen else torch.int64)
    assert batch.text.mask.any(0).all()  # no column of padding alone


def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    cache, manifest = _prepared(tmp_path)
    dataset = CachedDataset(cache, manifest, "train")
    items = [(index, epoch) for epoch in range(40) for index in sorted(dataset.samples)]
    whole = dataset.load(items, seed=3, caption_dropout=0.25).captions
    single = [CachedDataset(cache, manifest, "train").load([item], 3, 0.25).captions[0] for item in items[:30]]
    assert list(whole[:30]) == single
    other = dataset.load(items, seed=4, caption_dropout=0.25).captions
    assert whole != other
    dropped = sum(caption == "" for caption in whole) / len(whole)
    assert 0.18 < dropped < 0.32
    kept = dataset.load(items, seed=3).captions
    assert all(caption in ("", full) for caption, full in zip(whole, kept, strict=True))
    counts = [
        sum(manifest.samples[i].captions.index(c) == n for (i, _), c in zip(items, kept, strict=True)) for n in range(3)
    ]
    assert min(counts) > 0.25 * len(items)


def test_a_dropped_caption_is_the_empty_one(tmp_path: Path) -> None:
    cache, manifest = _prepared(tmp_path)
    batch = CachedDataset(cache, manifest, "train").load([(0, 0), (2, 0)], seed=0, caption_dropout=1.0)
    assert batch.captions == ("", "")
    assert batch.text.values.tolist() == [[9], [9]]
    assert batch.text.mask.all()


def test_an_empty_caption_without_a_token_is_refused(tmp_path: Path) -> None:
    cache, manifest = _prepared(tmp_path)
    bare = text_key("", "bare")
    cache.put(bare, "text", {"tokens": torch.zeros(0, dtype=torch.int32)})
    with pytest.raises(ValueError, match="at least one token"):
        CachedDataset(cache, Manifest("f", manifest.samples, (), "codec", "text", bare), "train")


def test_variants_are_drawn_by_seed_epoch_and_index(tmp_path: Path) -> None:
    cache, manifest = _prepared(tmp_path, variants=3)
    assert read_manifest(cache, "f00d") == manifest
    dataset = CachedDataset(cache, manifest, "train")
    plain = CachedDataset(*_prepared(tmp_path / "plain"), "train")
    items = [(index, epoch) for epoch in range(60) for index in sorted(dataset.samples)]
    batch = dataset.load(items, seed=5)
    drawn = []
    for row, (index, _) in enumerate(items):
        means = [cache.get(key)["mean"] for key in manifest.samples[index].latent_keys]
        drawn.append(next(v for v, mean in enumerate(means) if torch.equal(mean, batch.latents.mean[row])))
    assert all(0.25 < drawn.count(variant) / len(drawn) < 0.42 for variant in range(3))
    again = CachedDataset(cache, manifest, "train")
    for row in range(0, 40, 3):
        assert torch.equal(again.load([items[row]], seed=5).latents.mean[0], batch.latents.mean[row])
    assert not torch.equal(dataset.load(items, seed=6).latents.mean, batch.latents.mean)
    assert batch.captions == plain.load(items, seed=5).captions, "a variant more changes no other draw"


def test_latents_that_are_not_finite_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, manifest = _prepared(tmp_path)
    monkeypatch.setattr(cache_module, "is_finite", lambda tensor: True)
    key = "ab" * 20
    broken = torch.zeros(3, *LATENT.tuple)
    broken[1, 2, 3, 4] = float("nan")
    cache.put(key, "latent", {"mean": broken, "logvar": broken.half().nan_to_num()})
    bad = PreparedSample(50, "nan.mp4", 0, 0.0, ("x",), "train", SIZE, LATENT, (key,), (manifest.empty_text_key,))
    samples = (*manifest.samples, bad)
    dataset = CachedDataset(cache, Manifest("f", samples, (), "codec", "text", manifest.empty_text_key), "train")
    with pytest.raises(BadSample, match=r"nan.mp4 \(sample 50\): its latents \(mean, item abab") as caught:
        dataset.load([(0, 0), (50, 3), (2, 0)], 0)
    assert (caught.value.index, caught.value.clip) == (50, "nan.mp4")
    assert "hold NaN" in caught.value.reason and isinstance(caught.value, UserError)
    assert len(dataset.load([(0, 0), (2, 0)], 0)) == 2


@pytest.mark.parametrize("kind", ["latent", "text"])
def test_a_damaged_item_is_one_bad_sample(tmp_path: Path, kind: str) -> None:
    cache, manifest = _prepared(tmp_path)
    sample = manifest.samples[4]
    key = sample.latent_keys[0] if kind == "latent" else sample.text_keys[1]
    shard = next((tmp_path / "shards").glob(f"{kind}*.safetensors"))
    stored = next(iter(TensorFile(shard).items[key].values()))
    data = bytearray(shard.read_bytes())
    data[stored.start + 1] ^= 8
    shard.write_bytes(bytes(data))
    dataset = CachedDataset(Cache(tmp_path), manifest, "train")
    refused = 0
    for epoch in range(40):
        try:
            batch = dataset.load([(0, epoch), (4, epoch), (2, epoch)], seed=0)
            assert kind == "text" and batch.captions[1] != sample.captions[1]
        except BadSample as bad:
            refused += 1
            assert (bad.index, bad.clip) == (4, "c4.mp4")
            assert f"item {key} does not match its checksum" in bad.reason and str(shard) in str(bad)
        assert len(dataset.load([(0, epoch), (2, epoch)], seed=0)) == 2
    assert refused == 40 if kind == "latent" else 3 <= refused <= 30


def test_missing_items_are_counted_with_the_way_out(tmp_path: Path) -> None:
    _, manifest = _prepared(tmp_path)
    shard = next((tmp_path / "shards").glob("latent*.safetensors"))
    shard.unlink()
    with pytest.raises(UserError, match="9 of 37 prepared items are gone; run `reelwright prepare` again"):
        CachedDataset(Cache(tmp_path), manifest, "train")


def test_nothing_is_kept_by_the_process(tmp_path: Path) -> None:
    """What comes out is the caller's own: changing it changes no later batch."""
    dataset = CachedDataset(*_prepared(tmp_path), "train")
    items = [(index, 0) for index in (0, 2, 4)]
    first = dataset.load(items, 0)
    whole = first.latents.mean.clone()
    first.latents.mean.zero_()
    assert torch.equal(dataset.load(items, 0).latents.mean, whole)


def test_loading_is_fast(tmp_path: Path) -> None:
    """A low bar for a busy machine; benchmarks/cache_read.py measures."""
    cache, manifest = _prepared(tmp_path, 64, channels=16)
    dataset = CachedDataset(cache, manifest, "train")
    items = [(index, 0) for index in dataset.buckets()[SIZE][:16]]
    dataset.load(items, 0, 0.1)
    start = time.perf_counter()
    for epoch in range(20):
        dataset.load([(index, epoch) for index, _ in items], 0, 0.1)
    assert 20 * len(items) / (time.perf_counter() - start) > 500
