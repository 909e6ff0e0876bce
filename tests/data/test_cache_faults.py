"""Fault 14: whatever changes between two `prepare`s, nothing stale is taken and nothing is made again without need.

Every change is followed by a comparison of all that training would read with what an empty cache gives.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reelwright.data import cache as cache_module
from reelwright.data import fingerprints
from reelwright.data.cache import Cache
from reelwright.prepare import Summary, open_prepared, prepare
from reelwright.recipe import Recipe
from reelwright.types import UserError
from reelwright.video.write import read_frames, write_video
from tiny_clip import save_tiny_clip

CLIPS = 10
Load = Callable[..., Recipe]


@pytest.fixture
def own(tmp_path: Path, shapes_clips: Path, write_recipe: Any) -> Load:
    """A recipe on ten clips of its own with a cache of its own."""
    data = tmp_path / "data"
    (data / "videos").mkdir(parents=True)
    captions = json.loads((shapes_clips / "captions.json").read_text())
    chosen = dict(list(captions.items())[:CLIPS])
    for name in chosen:
        shutil.copy(shapes_clips / "videos" / name, data / "videos" / name)
    (data / "captions.json").write_text(json.dumps(chosen))
    time.sleep(0.12)  # so that the files' time stamps are trusted

    def load(*overrides: str, cache: str = "cache") -> Recipe:
        return Recipe.load(write_recipe(*overrides, data=data, cache=tmp_path / cache))

    return load


def done(summary: Summary) -> tuple[int, int, int]:
    """(latents encoded, captions encoded, things fitted)"""
    return summary.encoded, summary.texts, len(summary.fitted)


def content(recipe: Recipe) -> dict[tuple[str, int], Any]:
    """Everything training would read, by clip and variant."""
    prepared = open_prepared(recipe)
    read: dict[tuple[str, int], Any] = {}
    for sample in prepared.manifest.samples:
        texts = [prepared.cache.get(key) for key in sample.text_keys]
        for variant, key in enumerate(sample.latent_keys):
            read[sample.clip, variant] = (sample.captions, prepared.cache.get(key), texts)
    return read


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def as_from_nothing(own: Load, *overrides: str) -> bool:
    """Whether the cache gives what an empty one with the same fits gives for the same data and settings."""
    fresh = own(cache="fresh").cache_dir
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(own().cache_dir / "fitted", fresh / "fitted")
    prepare(own(*overrides, cache="fresh"))
    return same(content(own(*overrides)), content(own(*overrides, cache="fresh")))


def latents(summary: Summary) -> dict[str, tuple[str, ...]]:
    return {sample.clip: sample.latent_keys for sample in summary.manifest.samples}


def other_picture(video: Path) -> None:
    frames, fps = read_frames(video)
    write_video(video, 255 - frames, fps)


# -- the files


def test_bytes_changed_under_the_same_mtime(own: Load) -> None:
    before = prepare(own())
    video = own().data.path / "videos" / "00005.mp4"
    stat = video.stat()
    other_picture(video)
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert video.stat().st_mtime_ns == stat.st_mtime_ns
    after = prepare(own())
    assert done(after) == (1, 0, 0)
    changed = {clip for clip, keys in latents(after).items() if keys != latents(before)[clip]}
    assert changed == {"00005.mp4"} and as_from_nothing(own)


def test_one_byte_changed_in_place_under_the_same_mtime_and_size(own: Load) -> None:
    """In the file's last byte, which no picture may depend on: the bytes are what counts."""
    prepare(own())
    video = own().data.path / "videos" / "00002.mp4"
    stat = video.stat()
    with video.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (video.stat().st_mtime_ns, video.stat().st_size) == (stat.st_mtime_ns, stat.st_size)
    assert done(prepare(own("data.max_dropped=0.2"))) == (1, 0, 0)


def test_a_new_mtime_alone_is_a_hit(own: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare(own())
    time.sleep(0.12)
    assert done(prepare(own())) == (0, 0, 0)
    for video in (own().data.path / "videos").iterdir():
        os.utime(video)
    hashed: list[Path] = []
    sha256_of = fingerprints.sha256_of
    monkeypatch.setattr(fingerprints, "sha256_of", lambda path: (hashed.append(path), sha256_of(path))[1])
    after = prepare(own())
    assert done(after) == (0, 0, 0) and latents(after) == latents(before)
    assert len(hashed) == CLIPS, "they were looked at again"


def test_two_files_that_change_places(own: Load) -> None:
    before = prepare(own())
    videos = own().data.path / "videos"
    (videos / "00003.mp4").rename(videos / "x")
    (videos / "00004.mp4").rename(videos / "00003.mp4")
    (videos / "x").rename(videos / "00004.mp4")
    after = prepare(own())
    assert done(after) == (0, 0, 0)
    assert latents(after)["00003.mp4"] == latents(before)["00004.mp4"]
    assert latents(after)["00004.mp4"] == latents(before)["00003.mp4"]
    assert as_from_nothing(own)


def test_a_caption(own: Load) -> None:
    before = prepare(own())
    path = own().data.path / "captions.json"
    captions = json.loads(path.read_text())
    captions["00003.mp4"] = "an altogether different sentence"
    path.write_text(json.dumps(captions))
    after = prepare(own())
    assert done(after) == (0, 1, 0) and latents(after) == latents(before)
    sample = next(s for s in after.manifest.samples if s.clip == "00003.mp4")
    assert sample.captions == ("an altogether different sentence",)


# -- the settings

CHANGES = {  # and whether the codec is fitted anew
    "size": ("data.width=16", 1),
    "frames": ("data.frames=8", 1),
    "fps": ("data.fps=7", 1),
    "window": ("data.window=middle", 0),
    "dtype": ("data.cache_dtype=float16", 0),
    "codec": ("codec={type: pca, block: [4, 8, 8], channels: 16}", 1),
}


@pytest.mark.parametrize(
    "change", [pytest.param(c, marks=[] if c in ("size", "window", "codec") else pytest.mark.full) for c in CHANGES]
)
def test_a_setting_that_changes_every_latent(own: Load, change: str) -> None:
    base = ("data.frames=4",)  # room for another window
    before = prepare(own(*base))
    setting, fitted = CHANGES[change]
    after = prepare(own(*base, setting))
    assert done(after) == (CLIPS, 0, fitted)
    assert not {k for ks in latents(before).values() for k in ks} & {k for ks in latents(after).values() for k in ks}
    assert as_from_nothing(own, *base, setting)
    again = prepare(own(*base))
    assert done(again) == (0, 0, 0) and latents(again) == latents(before), "what was made before is still there"


@pytest.mark.parametrize(
    ("name", "value"), [("RESIZE_RULE", "area-centre-99"), pytest.param("PROBE_VERSION", "99", marks=pytest.mark.full)]
)
def test_another_rule_of_cropping_or_decoding(
    own: Load, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    prepare(own())
    monkeypatch.setattr(fingerprints, name, value)
    assert done(prepare(own())) == (CLIPS, 0, 0)
    monkeypatch.undo()
    assert done(prepare(own())) == (0, 0, 0)


def test_another_schema(own: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = prepare(own()).texts
    for module in (fingerprints, cache_module):
        monkeypatch.setattr(module, "SCHEMA", fingerprints.SCHEMA + 1)
    newer = prepare(own())
    assert done(newer) == (CLIPS, texts, 0), "the fits are no cached items"
    assert len(Cache(own().cache_dir).keys()) == CLIPS + texts
    monkeypatch.undo()
    assert len(Cache(own().cache_dir).keys()) == CLIPS + texts
    assert done(prepare(own())) == (0, 0, 0)


# -- weights that change under the same path


@pytest.mark.full
def test_another_codec_in_the_same_place(own: Load, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    def save(seed: int) -> None:
        torch.manual_seed(seed)
        settings: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 4, "latent_channels": 4}
        settings |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        AutoencoderKL(**settings).save_pretrained(tmp_path / "vae", safe_serialization=True)

    overrides = (f"codec={{type: autoencoder_kl, model: {tmp_path / 'vae'}}}", "model.patch=[1, 4, 4]")
    save(0)
    first = prepare(own(*overrides))
    assert done(prepare(own(*overrides))) == (0, 0, 0)
    save(1)
    second = prepare(own(*overrides))
    assert done(second) == (CLIPS, 0, 0)
    assert set(latents(first).values()).isdisjoint(latents(second).values()) and as_from_nothing(own, *overrides)
    save(0)
    assert done(prepare(own(*overrides))) == (0, 0, 0)


def test_another_text_encoder_in_the_same_place(own: Load, tmp_path: Path) -> None:
    """Embeddings of a frozen CLIP: one for each distinct caption, as long as the caption."""
    clip = f"text={{type: clip, model: {save_tiny_clip(tmp_path / 'clip')}}}"
    path = own().data.path / "captions.json"
    captions = json.loads(path.read_text())
    captions["00001.mp4"] = captions["00000.mp4"] = "a cat"
    path.write_text(json.dumps(captions))
    first = prepare(own(clip))
    distinct = len(set(captions.values())) + 1  # and the empty caption
    assert done(first) == (CLIPS, distinct, 1) and distinct <= CLIPS, "the codec alone is fitted"
    cache = Cache(own().cache_dir)
    lengths = {s.captions[0]: len(cache.get(s.text_keys[0])["embeddings"]) for s in first.manifest.samples}
    assert lengths["a cat"] == len("acat") + 2, "a letter a token, begin and end, no padding"
    assert max(lengths.values()) > lengths["a cat"]
    assert len([key for key in cache.keys() if "embeddings" in cache.get(key)]) == distinct  # noqa: SIM118
    assert done(prepare(own(clip))) == (0, 0, 0)
    save_tiny_clip(tmp_path / "clip", seed=1)
    second = prepare(own(clip))
    assert done(second) == (0, distinct, 0) and latents(second) == latents(first)
    assert as_from_nothing(own, clip)


# -- augmentation

FLIPS = ("data.augment=[{type: flip, probability: 1, guard: [circle]}]", "data.variants=2")


def test_augmentation_keeps_the_plain_latents(own: Load) -> None:
    plain = prepare(own())
    training = {s.clip for s in plain.manifest.samples if s.split == "train"}
    unguarded = {s.clip for s in plain.manifest.samples if "circle" not in s.captions[0]} & training
    assert 0 < len(unguarded) < len(training) < CLIPS, "the data has all three kinds"
    flipped = prepare(own(*FLIPS))
    assert done(flipped) == (len(unguarded), 0, 0)
    for clip, keys in latents(flipped).items():
        assert keys[0] == latents(plain)[clip][0]
        assert len(keys) == (2 if clip in training else 1), "held-out clips have no variant"
        assert len(set(keys)) == (2 if clip in unguarded else 1), "a guarded variant is the plain clip"
    assert as_from_nothing(own, *FLIPS)
    jitter = ("data.augment=[{type: colour, brightness: 0.2}]", "data.variants=3")
    assert done(prepare(own(*jitter))) == (2 * len(training), 0, 0)
    other = ("data.augment=[{type: colour, brightness: 0.3}]", "data.variants=3")
    assert done(prepare(own(*other))) == (2 * len(training), 0, 0) and as_from_nothing(own, *other)
    for settings in ((), FLIPS, jitter, other):
        assert done(prepare(own(*settings))) == (0, 0, 0)


def test_a_caption_redoes_a_variant_only_where_its_guard_decides_anew(own: Load) -> None:
    before = prepare(own(*FLIPS))
    path = own().data.path / "captions.json"
    captions = json.loads(path.read_text())
    by_split = {s.clip: s.split for s in before.manifest.samples}
    free = next(c for c, text in captions.items() if "circle" not in text and by_split[c] == "train")
    guarded = next(c for c, text in captions.items() if "circle" in text and by_split[c] == "train")
    captions[free], captions[guarded] = "something moves", "something else moves"
    path.write_text(json.dumps(captions))
    after = prepare(own(*FLIPS))
    assert done(after) == (1, 2, 0)
    assert latents(after)[free] == latents(before)[free]
    assert len(set(latents(before)[guarded])) == 1 and len(set(latents(after)[guarded])) == 2
    assert as_from_nothing(own, *FLIPS)


# -- items that are not whole


def test_half_written_items(own: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before anything is packed; then one pending file cut in half and another with a changed byte."""

    def killed(self: Cache) -> None:
        raise KeyboardInterrupt

    whole = prepare(own(cache="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Cache, "pack", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(own())
    pending = own().cache_dir / "pending"
    files = sorted(pending.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert len(files) == 2, "one of texts, one of latents"
    (pending / ".half.1-1.tmp").write_bytes(files[1].read_bytes()[:100])
    files[1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size // 2])
    after = prepare(own())
    assert done(after) == (CLIPS, 0, 0) and latents(after) == latents(whole) and as_from_nothing(own)


def test_a_pending_item_with_a_changed_byte(own: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index is whole, so only reading tells: it must not be trained on, and the next `prepare` makes it."""

    def killed(self: Cache) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "pack", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(own())
    largest = max((own().cache_dir / "pending").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(bytes(data))
    assert done(prepare(own())) == (1, 0, 0) and as_from_nothing(own)


def test_a_damaged_shard_is_said_and_made_again_when_it_is_gone(own: Load) -> None:
    before = prepare(own())
    shard = next((own().cache_dir / "shards").glob("latent*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 16
    shard.write_bytes(bytes(data))
    prepared = open_prepared(own())
    with pytest.raises(UserError, match="delete this file and run `reelwright prepare` again"):
        for dataset in (prepared.training, prepared.validation):
            for index in dataset.samples:
                dataset.load([(index, 0)], seed=0)
    shard.unlink()
    assert done(prepare(own())) == (CLIPS, 0, 0) and latents(prepare(own())) == latents(before)
    assert as_from_nothing(own)
