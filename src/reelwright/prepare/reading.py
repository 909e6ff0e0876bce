"""What `prepare` made, as training and everything after it reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reelwright.bundle import placed, settled_buckets
from reelwright.data.cache import Cache
from reelwright.data.dataset import (
    CachedDataset,
    Manifest,
    PreparedSample,
    has_manifest,
    pad_texts,
    read_manifest,
)
from reelwright.data.fingerprints import text_key
from reelwright.data.replacement import readable
from reelwright.recipe import Recipe
from reelwright.types import Size, Text, UserError

EMPTY = ""  # the caption that stands for 'no caption' in classifier-free guidance


def manifest_key(recipe: Recipe) -> str:
    """Names what `prepare` made for these settings; training looks it up by the same settings."""
    parts = [placed(recipe), recipe.codec.plain(), recipe.text.plain()]
    if (pictures := getattr(recipe.model, "pictures", None)) is not None:
        parts.append(pictures)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Conditions:
    """What videos are made from, one a row, and what guidance compares them with."""

    labels: list[str]
    cond: Text
    uncond: Text
    size: Size  # of the videos


@dataclass(frozen=True)
class Prepared:
    """The cache as training reads it."""

    recipe: Recipe  # with the buckets that were derived where it says `auto`
    manifest: Manifest
    cache: Cache
    training: CachedDataset
    validation: CachedDataset

    @property
    def data_sha256(self) -> str:
        """Of what is trained on: every sample's number, latents and captions."""
        facts = [[s.index, s.latent_keys, s.text_keys] for s in self.training.samples.values()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def texts(self, captions: Sequence[str]) -> Text:
        """Captions that were prepared (the clips' own, the recipe's sample prompts, the empty one), padded."""
        items = [self.cache.get(text_key(caption, self.manifest.text_fingerprint)) for caption in captions]
        return pad_texts([item["tokens"] if "tokens" in item else item["embeddings"] for item in items], pad_id=0)

    def sample_conditions(self, recipe: Recipe) -> Conditions:
        """What the sample videos of a run are made from: prompts, or pictures where the model starts from one."""
        if getattr(recipe.model, "pictures", None) is None:
            prompts = self.sample_prompts(recipe)
            return Conditions(prompts, self.texts(prompts), self.texts([EMPTY] * len(prompts)), recipe.size)
        dataset = self.validation if len(self.validation) else self.training
        samples = list(dataset.samples.values())
        size = recipe.size if any(s.size == recipe.size for s in samples) else samples[0].size
        wanted = recipe.train.sample_prompts
        chosen = _evenly([s for s in samples if s.size == size], wanted if isinstance(wanted, int) else len(wanted))
        sound = readable(dataset, [(s.index, 0) for s in chosen], 0)
        sound = sound or readable(dataset, [(s.index, 0) for s in samples if s.size == size], 0)[:1]
        if not sound:
            raise UserError(
                f"{recipe.cache_dir}: no clip can be read to start a sample video from; run `prepare` again"
            )
        cond = dataset.load(sound, seed=0).text
        image = None if cond.image is None else torch.zeros_like(cond.image)
        return Conditions(
            [dataset.samples[index].captions[0] for index, _ in sound],
            cond,
            Text(torch.zeros_like(cond.values), cond.mask, image),
            size,
        )

    def sample_prompts(self, recipe: Recipe) -> list[str]:
        """What the sample videos of a run show: the recipe's prompts, or captions taken evenly from the data."""
        wanted = recipe.train.sample_prompts
        if not isinstance(wanted, int):
            return list(wanted)
        dataset = self.validation if len(self.validation) else self.training
        return [sample.captions[0] for sample in _evenly(list(dataset.samples.values()), wanted)]


def _evenly(samples: Sequence[PreparedSample], wanted: int) -> list[PreparedSample]:
    places = np.unique(np.linspace(0, len(samples) - 1, min(wanted, len(samples))).round().astype(int))
    return [samples[place] for place in places]


def is_prepared(recipe: Recipe) -> bool:
    """Whether `prepare` was run with this recipe. Nothing is written, no folder made."""
    return has_manifest(recipe.cache_dir, manifest_key(settled_buckets(recipe)))


def open_prepared(recipe: Recipe) -> Prepared:
    """What `prepare` made for this recipe. UserError where it has not been run, or no clip is left to train on."""
    if not recipe.cache_dir.is_dir():  # what only reads makes no folder
        raise UserError(f"cache_dir = {recipe.cache_dir}: no such folder; run `reelwright prepare` with this recipe")
    recipe = settled_buckets(recipe)
    cache = Cache(recipe.cache_dir)
    manifest = read_manifest(cache, manifest_key(recipe))
    training = CachedDataset(cache, manifest, "train")
    if not len(training):
        raise UserError(f"data.path = {recipe.data.path}: no clip is left to train on; see: reelwright inspect RECIPE")
    return Prepared(recipe, manifest, cache, training, CachedDataset(cache, manifest, "validation"))
