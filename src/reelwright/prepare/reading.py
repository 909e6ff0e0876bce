"""What `prepare` made, as training and everything after it reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reelwright.bundle import placed, settled_buckets
from reelwright.data.cache import Cache
from reelwright.data.dataset import CachedDataset, Manifest, pad_texts, read_manifest
from reelwright.data.fingerprints import text_key
from reelwright.recipe import Recipe
from reelwright.types import Text, UserError

EMPTY = ""  # the caption that stands for 'no caption' in classifier-free guidance


def manifest_key(recipe: Recipe) -> str:
    """Names what `prepare` made for these settings; training looks it up by the same settings."""
    parts = [placed(recipe), recipe.codec.plain(), recipe.text.plain()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


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

    def sample_prompts(self, recipe: Recipe) -> list[str]:
        """What the sample videos of a run show: the recipe's prompts, or captions taken evenly from the data."""
        wanted = recipe.train.sample_prompts
        if not isinstance(wanted, int):
            return list(wanted)
        dataset = self.validation if len(self.validation) else self.training
        samples = list(dataset.samples.values())
        chosen = np.unique(np.linspace(0, len(samples) - 1, min(wanted, len(samples))).round().astype(int))
        return [samples[i].captions[0] for i in chosen]


def open_prepared(recipe: Recipe) -> Prepared:
    """What `prepare` made for this recipe. UserError where it has not been run, or no clip is left to train on."""
    recipe = settled_buckets(recipe)
    cache = Cache(recipe.cache_dir)
    manifest = read_manifest(cache, manifest_key(recipe))
    training = CachedDataset(cache, manifest, "train")
    if not len(training):
        raise UserError(f"data.path = {recipe.data.path}: no clip is left to train on; see: reelwright inspect RECIPE")
    return Prepared(recipe, manifest, cache, training, CachedDataset(cache, manifest, "validation"))
