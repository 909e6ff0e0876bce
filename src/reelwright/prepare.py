"""Data -> cache: decode, fit what must be fitted, encode, tokenize. The same command again does only what changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from reelwright.bundle import build_codec, build_text, check_fit, fitted_path, placed
from reelwright.data.cache import Cache, write_atomic
from reelwright.data.dataset import CachedDataset, Manifest, PreparedSample, pad_texts, read_manifest, write_manifest
from reelwright.data.fingerprints import latent_key, text_key
from reelwright.data.inspection import Inspection, Sample, inspect
from reelwright.data.sources import Dropped, write_clip_manifest
from reelwright.data.windows import WindowReader
from reelwright.metrics.frames import psnr
from reelwright.models.codec import pixels_to_video, video_to_pixels
from reelwright.recipe import Recipe
from reelwright.training.devices import resolve_device
from reelwright.types import Text, UserError

Progress = Callable[[str, int, int], None]  # stage, done, total
EMPTY = ""  # the caption that stands for 'no caption' in classifier-free guidance
FIT_CLIPS = 1024  # windows a codec is fitted on at most, evenly taken from the training split
ENCODE_BATCH = 16
TEXT_BATCH = 64
CHECKED_CLIPS = 16  # windows the codec's round trip is measured on
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Summary:
    """What `prepare` did, for people and programs."""

    recipe: Recipe
    inspection: Inspection
    manifest: Manifest
    encoded: int = 0
    texts: int = 0
    fitted: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "cache_dir": str(self.recipe.cache_dir),
            "samples": self.manifest.counts(),
            "encoded": self.encoded,
            "reused": len(self.manifest.samples) - self.encoded,
            "texts_encoded": self.texts,
            "fitted": self.fitted,
            "codec_psnr_db": self.manifest.about["codec_psnr_db"],
            "captions_cut": self.manifest.about["captions_cut"],
            "dropped": [{"id": d.id, "reason": d.reason} for d in self.manifest.dropped],
        }

    def lines(self) -> list[str]:
        facts = self.to_json()
        counts = facts["samples"]
        lines = [f"dropped {d['id']}: {d['reason']}" for d in facts["dropped"]]
        lines += [f"fitted on the data: {part}" for part in self.fitted]
        lines.append(
            f"{facts['cache_dir']}: {counts.get('train', 0)} training and "
            f"{counts.get('validation', 0)} held-out samples, "
            f"{counts['dropped']} clips dropped; {self.encoded} encoded now, {facts['reused']} were there; "
            f"{self.texts} captions encoded now"
        )
        if facts["captions_cut"]:
            lines.append(
                f"{facts['captions_cut']} captions are longer than text.length = {self.recipe.text.length} tokens; "
                "their ends are not seen: raise text.length"
            )
        if facts["codec_psnr_db"] is not None:
            lines.append(f"codec round trip: {facts['codec_psnr_db']:.1f} dB PSNR (what the best model could reach)")
        return lines


def prepare(recipe: Recipe, progress: Progress = lambda *_: None, verify: bool = False, refit: bool = False) -> Summary:
    """Bring the cache up to date with the data and the recipe. Safe to kill and to repeat.

    UserError where more clips are lost than data.max_dropped allows. Nothing is ever dropped without its reason.
    """
    cache = Cache(recipe.cache_dir)
    codec = _fitted_codec(recipe) if not refit else None
    text = _fitted_text(recipe) if not refit else None
    _check_sizes(recipe, codec or recipe.codec.build())
    inspection = inspect(
        recipe.data, cache, progress=lambda n, total, _: progress("inspecting", n, total), verify=verify
    )
    inspection.enforce_max_dropped(recipe.data)
    frames = WindowReader(inspection, recipe.data.fps)
    fitted: list[str] = []

    if codec is None:
        codec = _fit_codec(recipe, inspection, frames, progress)
        fitted.append(f"codec {recipe.codec.type}")
    if text is None:
        text = _fit_text(recipe, inspection)
        fitted.append(f"tokenizer of text {recipe.text.type}")

    codec_fingerprint, text_fingerprint = codec.fingerprint(), text.fingerprint()
    dtype = recipe.data.cache_dtype
    keys = {
        sample.index: latent_key(
            sample.sha256, sample.start_seconds, sample.size, recipe.data.fps, codec_fingerprint, dtype
        )
        for sample in inspection.samples
    }
    todo = [sample for sample in inspection.samples if not cache.has(keys[sample.index])]
    encoded = _encode(recipe, codec, cache, frames, todo, keys, progress)
    captions = {caption for sample in inspection.samples for caption in sample.clip.captions} | {EMPTY}
    if not isinstance(recipe.train.sample_prompts, int):
        captions |= set(recipe.train.sample_prompts)
    texts = _encode_texts(text, text_fingerprint, cache, sorted(captions), progress)
    cache.pack()

    lost = {item.id for item in frames.dropped}
    if lost and len(inspection.dropped) + len(lost) > recipe.data.max_dropped * inspection.num_clips:
        raise UserError(_too_many_lost(inspection, frames.dropped, recipe))
    samples = tuple(
        PreparedSample(
            index=sample.index,
            clip=sample.clip.id,
            window=sample.window,
            start_seconds=sample.start_seconds,
            captions=sample.clip.captions,
            split=sample.split,
            size=sample.size,
            latent_size=codec.compression.latent_size(sample.size),
            latent_key=keys[sample.index],
            text_keys=tuple(text_key(caption, text_fingerprint) for caption in sample.clip.captions),
        )
        for sample in inspection.samples
        if sample.clip.id not in lost
    )
    about = {
        "codec_psnr_db": _codec_psnr(codec, cache, frames, inspection, keys),
        "text_width": text.width,
        "captions_cut": _count_cut(text, sorted(captions)),
    }
    manifest = Manifest(
        manifest_key(recipe), samples, (*inspection.dropped, *frames.dropped), codec_fingerprint, text_fingerprint,
        text_key(EMPTY, text_fingerprint), about,
    )  # fmt: skip
    write_manifest(cache, manifest)
    for split in ("train", "validation"):
        clips = {s.clip.id: s.clip for s in inspection.samples if s.split == split and s.clip.id not in lost}
        write_clip_manifest(clips.values(), recipe.cache_dir / f"{split}.manifest.jsonl", split)
    return Summary(recipe, inspection, manifest, encoded, texts, fitted)


def manifest_key(recipe: Recipe) -> str:
    """Names what `prepare` made for these settings; training looks it up by the same settings."""
    parts = [placed(recipe), recipe.codec.plain(), recipe.text.plain()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Prepared:
    """The cache as training reads it."""

    manifest: Manifest
    cache: Cache
    training: CachedDataset
    validation: CachedDataset

    @property
    def data_sha256(self) -> str:
        """Of what is trained on: every sample's number, latents and captions."""
        facts = [[s.index, s.latent_key, s.text_keys] for s in self.training.samples.values()]
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
    cache = Cache(recipe.cache_dir)
    manifest = read_manifest(cache, manifest_key(recipe))
    training = CachedDataset(cache, manifest, "train")
    if not len(training):
        raise UserError(f"data.path = {recipe.data.path}: no clip is left to train on; see: reelwright inspect RECIPE")
    return Prepared(manifest, cache, training, CachedDataset(cache, manifest, "validation"))


class _Videos:
    """Decoded windows as a codec's `fit` reads them: float `1 3 f h w`, of known number."""

    def __init__(self, frames: WindowReader, samples: Sequence[Sample], on_read: Callable[[int], None]) -> None:
        self._frames, self._samples, self._on_read = frames, samples, on_read

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Tensor]:
        for number, (_, pixels) in enumerate(self._frames.read(self._samples, keep=True), start=1):
            self._on_read(number)
            yield pixels_to_video(torch.from_numpy(pixels)[None])


def _check_sizes(recipe: Recipe, codec: Any) -> None:
    """UsageError, before anything is decoded, where a size of the recipe fits neither codec nor patch."""
    with torch.device("meta"):  # no weights: only the rules are asked for
        denoiser = recipe.model.build(channels=codec.channels, text_width=1)
    check_fit(recipe, codec, denoiser)


def _fitted_codec(recipe: Recipe) -> Any | None:
    """The codec as fitted before; None where it still has to be."""
    if recipe.codec.build().needs_fit and not fitted_path(recipe, "codec").exists():
        return None
    return build_codec(recipe)


def _fitted_text(recipe: Recipe) -> Any | None:
    if recipe.text.type == "native" and not fitted_path(recipe, "text").exists():
        return None
    return build_text(recipe)


def _fit_codec(recipe: Recipe, inspection: Inspection, frames: WindowReader, progress: Progress) -> Any:
    """Fit on training windows only: the held-out clips stay unseen."""
    codec: Any = recipe.codec.build()
    training = [sample for sample in inspection.samples if sample.split == "train"] or list(inspection.samples)
    chosen = training[:: -(-len(training) // FIT_CLIPS)]

    codec.fit(_Videos(frames, chosen, lambda done: progress("fitting the codec", done, len(chosen))))
    _write(fitted_path(recipe, "codec"), save(codec.state_dict()))
    return codec


def _fit_text(recipe: Recipe, inspection: Inspection) -> Any:
    text: Any = recipe.text.build()
    if not text.trainable:
        return text
    text.fit(caption for sample in inspection.samples if sample.split == "train" for caption in sample.clip.captions)
    _write(fitted_path(recipe, "text"), text.tokenizer_json().encode())
    return text


def _encode(
    recipe: Recipe,
    codec: Any,
    cache: Cache,
    frames: WindowReader,
    todo: Sequence[Sample],
    keys: dict[int, str],
    progress: Progress,
) -> int:
    """Windows -> latents, in batches of one size; every item is on disk when its batch is done."""
    device = resolve_device(recipe.train.device)
    codec.to(device)
    dtype = DTYPES[recipe.data.cache_dtype]
    done = 0
    for size in sorted({sample.size for sample in todo}):
        of_size = [sample for sample in todo if sample.size == size]
        for batch in _batched(frames.read(of_size), ENCODE_BATCH):
            pixels = torch.from_numpy(np.stack([pixels for _, pixels in batch]))
            with torch.no_grad():
                posterior = codec.encode(pixels_to_video(pixels).to(device))
            parts = {"mean": posterior.mean, "logvar": posterior.logvar}
            parts = {name: tensor.to("cpu", dtype) for name, tensor in parts.items() if tensor is not None}
            items = {}
            for row, (sample, _) in enumerate(batch):
                item = {name: tensor[row] for name, tensor in parts.items()}
                if all(bool(tensor.isfinite().all()) for tensor in item.values()):
                    items[keys[sample.index]] = item
                else:
                    frames.drop(sample, f"the codec {recipe.codec.type} makes NaN or infinity of it")
            cache.put_many(f"latent-{size}", items)
            done += len(batch)
            progress("encoding", done, len(todo))
    codec.to("cpu")
    return done


def _count_cut(text: Any, captions: Sequence[str]) -> int:
    """Captions with more tokens than the encoder takes: their ends are not seen."""
    return sum(count > text.length for count in text.count_tokens(list(captions)))


def _encode_texts(text: Any, fingerprint: str, cache: Cache, captions: Sequence[str], progress: Progress) -> int:
    """Each distinct caption once: token ids of a trainable encoder, embeddings of a frozen one, without padding."""
    todo = [caption for caption in captions if not cache.has(text_key(caption, fingerprint))]
    for start in range(0, len(todo), TEXT_BATCH):
        chunk = todo[start : start + TEXT_BATCH]
        tokens = text.tokenize(chunk)
        encoded = tokens
        if not text.trainable:
            with torch.no_grad():
                encoded = text(tokens)
        name = "tokens" if text.trainable else "embeddings"
        dtype = torch.int32 if text.trainable else torch.float32
        rows = zip(chunk, encoded.values, encoded.mask, strict=True)
        cache.put_many(
            "text", {text_key(caption, fingerprint): {name: values[mask].to(dtype)} for caption, values, mask in rows}
        )
        progress("captions", start + len(chunk), len(todo))
    return len(todo)


def _codec_psnr(
    codec: Any, cache: Cache, frames: WindowReader, inspection: Inspection, keys: dict[int, str]
) -> float | None:
    """Mean PSNR of the codec's round trip over a few windows: what no model trained on these latents can exceed."""
    samples = list(inspection.samples)[:: max(1, len(inspection.samples) // CHECKED_CLIPS)][:CHECKED_CLIPS]
    values = []
    for sample, pixels in frames.read(samples):
        with torch.no_grad():
            decoded = video_to_pixels(codec.decode(cache.get(keys[sample.index])["mean"][None].float()))[0]
        values.append(psnr(decoded.numpy(), pixels))
    finite = [value for value in values if np.isfinite(value)]
    return round(float(np.mean(finite)), 2) if finite else None


def _too_many_lost(inspection: Inspection, lost: Sequence[Dropped], recipe: Recipe) -> str:
    dropped = [*lost, *inspection.dropped]
    reasons = "\n  ".join(f"{item.id}: {item.reason}" for item in dropped[:10])
    return (
        f"{len(dropped)} of {inspection.num_clips} clips are lost, {len(lost)} of them while they were decoded; "
        f"that is more than data.max_dropped = {recipe.data.max_dropped:g} allows:\n  {reasons}\n"
        "Mend or remove them, or raise data.max_dropped"
    )


def _batched(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
