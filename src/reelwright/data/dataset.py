"""What `prepare` made, and batches of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from reelwright.data.cache import Cache, CacheDamaged, is_finite, read_json, write_json
from reelwright.data.sources import Dropped
from reelwright.randomness import keyed_generator
from reelwright.types import Batch, Posterior, Size, Text, UserError

MEMORY_BYTES = 1 << 30  # a split smaller than this is kept in memory after its first reading


@dataclass(frozen=True)
class PreparedSample:
    """One window of one clip, encoded."""

    index: int  # global: the same in every split, keys every random draw of the sample
    clip: str
    window: int
    start_seconds: float
    captions: tuple[str, ...]
    split: str  # "train" or "validation"
    size: Size
    latent_size: Size
    latent_key: str
    text_keys: tuple[str, ...]  # one per caption

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.text_keys) or not self.captions:
            raise ValueError(f"{self.clip}: {len(self.captions)} captions but {len(self.text_keys)} text keys")


@dataclass(frozen=True)
class Manifest:
    """Everything a training run needs to know of prepared data."""

    fingerprint: str  # of the settings it was prepared with (chosen by `prepare`)
    samples: tuple[PreparedSample, ...]
    dropped: tuple[Dropped, ...]
    codec_fingerprint: str
    text_fingerprint: str
    empty_text_key: str  # the empty caption, which stands in for a dropped one
    about: Mapping[str, Any] = field(default_factory=dict)  # plain values `prepare` wants kept beside them

    def counts(self) -> dict[str, int]:
        """Samples per split, and the clips dropped."""
        return {**Counter(sample.split for sample in self.samples), "dropped": len(self.dropped)}


def write_manifest(cache: Cache, manifest: Manifest) -> None:
    folder = cache.root / "manifests"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{manifest.fingerprint}.json", asdict(manifest))


def read_manifest(cache: Cache, fingerprint: str) -> Manifest:
    """The manifest of these settings. UserError where they were not prepared; CacheDamaged."""
    path = cache.root / "manifests" / f"{fingerprint}.json"
    try:
        plain = read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{cache.root}: not prepared for this recipe (no {path.name}); run `reelwright prepare` with it first"
        ) from None
    if plain is None:
        raise CacheDamaged(f"{path}: damaged (its checksum differs); delete it and run `reelwright prepare` again")
    samples = tuple(
        PreparedSample(
            **{
                **sample,
                "captions": tuple(sample["captions"]),
                "text_keys": tuple(sample["text_keys"]),
                "size": Size(**sample["size"]),
                "latent_size": Size(**sample["latent_size"]),
            }
        )
        for sample in plain["samples"]
    )
    dropped = tuple(Dropped(**item) for item in plain["dropped"])
    return Manifest(**{**plain, "samples": samples, "dropped": dropped})


class CachedDataset:
    """The samples of one split as batches.

    Latent items hold "mean" `c f h w` and, of a stochastic codec, "logvar". Text items hold "tokens" `l` (token ids)
    or "embeddings" `l d`, without padding.
    """

    def __init__(self, cache: Cache, manifest: Manifest, split: str, pad_id: int = 0) -> None:
        self.cache, self.pad_id = cache, pad_id
        self.samples = {sample.index: sample for sample in manifest.samples if sample.split == split}
        self._empty_key = manifest.empty_text_key
        keys = {sample.latent_key for sample in self.samples.values()} | {manifest.empty_text_key}
        keys |= {key for sample in self.samples.values() for key in sample.text_keys}
        missing = sorted(key for key in keys if not cache.has(key))
        if missing:
            raise UserError(
                f"{cache.root}: {len(missing)} of {len(keys)} prepared items are gone; "
                "run `reelwright prepare` again, it makes only these"
            )
        self._keep = sum(cache.num_bytes(key) for key in keys) <= MEMORY_BYTES
        self._kept: dict[str, dict[str, Tensor]] = {}
        if len(self._text(self._empty_key)) < 1:
            raise ValueError("the empty caption needs at least one token, or attention has nothing to attend to")

    def __len__(self) -> int:
        return len(self.samples)

    def buckets(self) -> dict[Size, list[int]]:
        """Sample indices by size, ascending: what `BucketSampler` takes."""
        buckets: dict[Size, list[int]] = {}
        for index in sorted(self.samples):
            buckets.setdefault(self.samples[index].size, []).append(index)
        return buckets

    def load(self, items: Sequence[tuple[int, int]], seed: int, caption_dropout: float = 0.0) -> Batch:
        """A batch of (index, epoch) items of one bucket; float32 latents.

        Which caption, and whether it is dropped, depends on (seed, epoch, index) alone. UserError names a clip whose
        latents are not finite.
        """
        latents = [self._latents(self.samples[index]) for index, _ in items]
        mean = torch.stack([item["mean"] for item in latents]).float()
        logvar = torch.stack([item["logvar"] for item in latents]).float() if "logvar" in latents[0] else None
        captions, texts = [], []
        for index, epoch in items:
            caption, key = self._caption(self.samples[index], epoch, seed, caption_dropout)
            captions.append(caption)
            texts.append(self._text(key))
        return Batch(
            indices=tuple(index for index, _ in items),
            epochs=tuple(epoch for _, epoch in items),
            latents=Posterior(mean, logvar),
            text=pad_texts(texts, self.pad_id),
            captions=tuple(captions),
        )

    def _caption(self, sample: PreparedSample, epoch: int, seed: int, dropout: float) -> tuple[str, str]:
        """(caption, key of its text) of a sample in an epoch."""
        if dropout > 0:
            generator = keyed_generator(seed, epoch, sample.index, "caption_drop")
            if torch.rand((), generator=generator).item() < dropout:
                return "", self._empty_key
        which = 0
        if len(sample.captions) > 1:
            generator = keyed_generator(seed, epoch, sample.index, "caption")
            which = int(torch.randint(len(sample.captions), (), generator=generator))
        return sample.captions[which], sample.text_keys[which]

    def _latents(self, sample: PreparedSample) -> dict[str, Tensor]:
        kept = self._kept.get(sample.latent_key)
        if kept is not None:
            return kept
        item = self.cache.get(sample.latent_key)
        for name, tensor in item.items():
            if not is_finite(tensor):
                raise UserError(
                    f"{sample.clip}: its latents ({name}, item {sample.latent_key}) hold NaN or infinity; "
                    "they cannot be trained on. Remove the clip or the cache and run `reelwright prepare` again"
                )
        return self._remember(sample.latent_key, item)

    def _text(self, key: str) -> Tensor:
        kept = self._kept.get(key)
        item = kept if kept is not None else self._remember(key, self.cache.get(key))
        return item["tokens"] if "tokens" in item else item["embeddings"]

    def _remember(self, key: str, item: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._keep:
            self._kept[key] = item
        return item


def pad_texts(texts: Sequence[Tensor], pad_id: int) -> Text:
    """Token ids `l` -> int64 `b l`, or embeddings `l d` -> float32 `b l d`, padded to the longest."""
    longest = max(len(text) for text in texts)
    tokens = texts[0].ndim == 1
    shape = (len(texts), longest, *texts[0].shape[1:])
    values = torch.full(shape, pad_id if tokens else 0, dtype=torch.int64 if tokens else torch.float32)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        values[row, : len(text)] = text
        mask[row, : len(text)] = True
    return Text(values, mask)
