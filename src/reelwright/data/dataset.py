"""What `prepare` made, and batches of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reelwright.data.cache import Cache, CacheDamaged, is_finite
from reelwright.data.sealed import read_json, write_json
from reelwright.data.sources import Dropped
from reelwright.randomness import keyed_generator
from reelwright.types import Batch, Posterior, Size, Text, UserError


class BadSample(UserError):
    """A prepared sample that cannot be trained on: damaged in the cache, or not finite. Training may go on without it.

    `index`, `clip` and `reason` name it; uncaught, the text says all three and the way out.
    """

    def __init__(self, index: int, clip: str, reason: str) -> None:
        super().__init__(f"{clip} (sample {index}): {reason}")
        self.index, self.clip, self.reason = index, clip, reason


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
    latent_keys: tuple[str, ...]  # of the plain window, then of its augmented variants
    text_keys: tuple[str, ...]  # one per caption

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.text_keys) or not self.captions:
            raise ValueError(f"{self.clip}: {len(self.captions)} captions but {len(self.text_keys)} text keys")
        if not self.latent_keys:
            raise ValueError(f"{self.clip}: no latent key; the plain window has one")


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


def has_manifest(cache_dir: Path, fingerprint: str) -> bool:
    """Whether these settings were prepared in a cache's folder, which need not exist."""
    return _manifest_path(cache_dir, fingerprint).is_file()


def _manifest_path(cache_dir: Path, fingerprint: str) -> Path:
    return cache_dir / "manifests" / f"{fingerprint}.json"


def read_manifest(cache: Cache, fingerprint: str) -> Manifest:
    """The manifest of these settings. UserError where they were not prepared; CacheDamaged."""
    path = _manifest_path(cache.root, fingerprint)
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
                "latent_keys": tuple(sample["latent_keys"]),
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
    """The samples of one split as batches, read from the cache each time: the page cache keeps what fits.

    Latent items hold "mean" `c f h w` and, of a stochastic codec, "logvar"; where a model starts from a picture, that
    of the first frame too: "picture" `l d` and "image", latents `c h w`, which then stand in for text. Text items hold
    "tokens" `l` (token ids) or "embeddings" `l d`, without padding.
    """

    def __init__(self, cache: Cache, manifest: Manifest, split: str, pad_id: int = 0) -> None:
        self.cache, self.pad_id = cache, pad_id
        self.samples = {sample.index: sample for sample in manifest.samples if sample.split == split}
        self._empty_key = manifest.empty_text_key
        keys = {key for sample in self.samples.values() for key in (*sample.latent_keys, *sample.text_keys)}
        missing = sum(not cache.has(key) for key in keys | {self._empty_key})
        if missing:
            raise UserError(
                f"{cache.root}: {missing} of {len(keys | {self._empty_key})} prepared items are gone; "
                "run `reelwright prepare` again, it makes only these"
            )
        self._empty = _values(cache.get(self._empty_key))
        if len(self._empty) < 1:
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

        Which variant, which caption and whether it is dropped depend on (seed, epoch, index) alone. BadSample names
        the first one whose latents or text are damaged or not finite.
        """
        latents = self._latents(items, seed)
        mean = latents["mean"].float()
        logvar = latents["logvar"].float() if "logvar" in latents else None
        captions, texts, dropped = [], [], []
        for index, epoch in items:
            dropped.append(self._drops_caption(index, epoch, seed, caption_dropout))
            caption, key = ("", self._empty_key) if dropped[-1] else self._caption(self.samples[index], epoch, seed)
            captions.append(caption)
            texts.append(self._text(index, key))
        return Batch(
            indices=tuple(index for index, _ in items),
            epochs=tuple(epoch for _, epoch in items),
            latents=Posterior(mean, logvar),
            text=_pictures(latents, dropped) if "picture" in latents else pad_texts(texts, self.pad_id),
            captions=tuple(captions),
        )

    def _drops_caption(self, index: int, epoch: int, seed: int, dropout: float) -> bool:
        if dropout <= 0:
            return False
        return torch.rand((), generator=keyed_generator(seed, epoch, index, "caption_drop")).item() < dropout

    def _caption(self, sample: PreparedSample, epoch: int, seed: int) -> tuple[str, str]:
        """(caption, key of its text) of a sample in an epoch."""
        which = _choice(len(sample.captions), seed, epoch, sample.index, "caption")
        return sample.captions[which], sample.text_keys[which]

    def _latents(self, items: Sequence[tuple[int, int]], seed: int) -> dict[str, Tensor]:
        """Mean and, of a stochastic codec, logvar of one variant of each sample: `b c f h w`, as they are stored."""
        keys = []
        for index, epoch in items:
            variants = self.samples[index].latent_keys
            keys.append(variants[_choice(len(variants), seed, epoch, index, "variant")])
        try:
            latents = self.cache.stack(keys)
        except CacheDamaged as damage:
            raise self._bad(items[keys.index(damage.key)][0], str(damage)) from None
        for name, tensor in latents.items():
            if not is_finite(tensor):
                row = next(row for row, values in enumerate(tensor) if not is_finite(values))
                raise self._bad(
                    items[row][0],
                    f"its latents ({name}, item {keys[row]}) hold NaN or infinity; they cannot be trained on. "
                    "Remove the clip or the cache and run `reelwright prepare` again",
                )
        return latents

    def _text(self, index: int, key: str) -> Tensor:
        if key == self._empty_key:
            return self._empty
        try:
            return _values(self.cache.get(key))
        except CacheDamaged as damage:
            raise self._bad(index, str(damage)) from None

    def _bad(self, index: int, reason: str) -> BadSample:
        return BadSample(index, self.samples[index].clip, reason)


def _choice(count: int, *key: int | str) -> int:
    """One of `count`; without a draw where there is no choice."""
    if count == 1:
        return 0
    return int(torch.randint(count, (), generator=keyed_generator(*key)))


def _values(item: Mapping[str, Tensor]) -> Tensor:
    """Of a text: token ids `l` or embeddings `l d`."""
    return item["tokens"] if "tokens" in item else item["embeddings"]


def _pictures(items: Mapping[str, Tensor], dropped: Sequence[bool]) -> Text:
    """What stands in for text where a model starts from a picture; zeros where it is `dropped`."""
    kept = 1 - torch.tensor(dropped, dtype=torch.float32)  # b
    values = items["picture"].float() * kept[:, None, None]  # b l d
    image = items["image"].float() * kept[:, None, None, None]  # b c h w
    image = image[:, :, None].expand(-1, -1, items["mean"].shape[2], -1, -1)  # b c f h w
    return Text(values, torch.ones(values.shape[:2], dtype=torch.bool), image)


def pad_texts(texts: Sequence[Tensor], pad_id: int) -> Text:
    """Token ids `l` -> int64 `b l`, or embeddings `l d` -> float32 `b l d`, padded to the longest."""
    tokens = texts[0].ndim == 1
    values = pad_sequence(list(texts), batch_first=True, padding_value=pad_id if tokens else 0)
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(values.shape[1]) < lengths[:, None]  # b l
    return Text(values.to(torch.int64 if tokens else torch.float32), mask)
