"""`prepare`: one straight function from a recipe to an up-to-date cache and its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reelwright.bundle import blueprint, check_fit, keep_buckets, settled_buckets, size_rule, try_network
from reelwright.data.cache import Cache
from reelwright.data.dataset import Manifest, PreparedSample, read_manifest, write_manifest
from reelwright.data.fingerprints import text_key
from reelwright.data.inspection import Inspection, Sample, inspect
from reelwright.data.sandbox import Decoders
from reelwright.data.sources import Dropped, write_clip_manifest
from reelwright.data.windows import Piece, WindowReader
from reelwright.loading import take_fits
from reelwright.metrics.frames import psnr
from reelwright.models.codec import video_to_pixels
from reelwright.prepare.encoding import Progress, encode_pieces, encode_texts
from reelwright.prepare.engine import Engine
from reelwright.prepare.fitting import fit_codec, fit_text, fitted_codec, fitted_text
from reelwright.prepare.pictures import Pictures, pictures_of
from reelwright.prepare.pieces import pieces_of
from reelwright.prepare.processes import Processes, joined
from reelwright.prepare.reading import EMPTY, manifest_key
from reelwright.prepare.summary import Summary, too_many_lost
from reelwright.recipe import Recipe
from reelwright.training.devices import resolve_device
from reelwright.types import UsageError, UserError

CHECKED_WINDOWS = (4, 16)  # fewest and most windows the codec's round trip is measured on
CHECKED_SHARE = 8  # between them, one in so many


@dataclass
class _Plan:
    """What there is, what it will be called, and what of it is missing."""

    recipe: Recipe
    cache: Cache
    codec: Any
    text: Any
    inspection: Inspection
    frames: WindowReader
    fitted: list[str]
    codec_fingerprint: str
    text_fingerprint: str
    pictures: Pictures | None  # of a model that starts from one; then no caption is looked at
    keys: dict[int, tuple[str, ...]]  # of latents, by sample index, the plain window's first
    pieces: list[Piece]  # what is missing, each once, those of one size together
    texts: list[str]  # captions that are missing

    @property
    def latent_fingerprint(self) -> str:
        """What a window's item depends on besides the window."""
        return _latent_fingerprint(self.codec_fingerprint, self.pictures)

    def text_key(self, caption: str) -> str:
        return text_key(caption if self.pictures is None else EMPTY, self.text_fingerprint)


def _latent_fingerprint(codec_fingerprint: str, pictures: Pictures | None) -> str:
    return codec_fingerprint if pictures is None else f"{codec_fingerprint} {pictures.fingerprint()}"


def prepare(
    recipe: Recipe,
    progress: Progress = lambda *_: None,
    verify: bool = False,
    refit: bool = False,
    engine: Engine = Engine(),
) -> Summary:
    """Bring the cache up to date with the data and the recipe. Safe to kill and to repeat.

    Under `accelerate launch` every process calls this: the first inspects and fits, each encodes its share by content,
    the first writes the manifest when all are done. `progress` is called in each of them; an exception it raises ends
    all. UserError where more clips are lost than data.max_dropped allows. Nothing is ever dropped without its reason.
    """
    workers = engine.workers if engine.name == "local" else None
    with (
        joined(resolve_device(recipe.train.device)) as processes,
        Decoders(workers, recipe.data.limits) as decoders,
    ):
        if engine.name == "ray" and processes.count > 1 and processes.first:  # one message is enough
            raise UsageError("engine=ray starts its own processes: run it without accelerate launch or torchrun")

        def waiting() -> None:
            progress("waiting for the other processes", 0, 1)

        if processes.first:
            plan = _plan(recipe, decoders, progress, verify, refit)
            processes.tell("planned")
        else:  # by now everything is known and fitted: this only reads
            processes.hear("planned", 0, waiting)
            plan = _plan(recipe, decoders, progress)

        pieces = [piece for piece in plan.pieces if processes.takes(piece.key)]
        lost = _encode(plan, pieces, engine, processes, progress)
        mine = [caption for caption in plan.texts if processes.takes(plan.text_key(caption))]
        device = resolve_device(plan.recipe.train.device)
        encode_texts(plan.text, plan.text_fingerprint, plan.cache, mine, progress, device)
        processes.tell("encoded", [[item.id, item.reason] for item in lost])
        if not processes.first:
            done = processes.hear("written", 0, waiting)
            manifest = read_manifest(plan.cache, manifest_key(plan.recipe))
            return Summary(plan.recipe, plan.inspection, manifest, *done)

        if processes.count > 1:
            lost = [Dropped(*item) for told in processes.hear_all("encoded", waiting) for item in told]
            plan.cache.pack()  # takes in what the others stored
            lost += _encode(plan, _unmade(plan, lost), engine, processes, progress)
        plan.cache.pack()
        manifest = _manifest(plan, _all_lost(plan, lost))
        made = {key for sample in manifest.samples for key in sample.latent_keys}
        done = [sum(piece.key in made for piece in plan.pieces), len(plan.texts), plan.fitted]
        processes.tell("written", done)
        return Summary(
            plan.recipe, plan.inspection, manifest, *done, damaged=[str(damage) for damage in plan.cache.mended]
        )


def _plan(recipe: Recipe, decoders: Decoders, progress: Progress, verify: bool = False, refit: bool = False) -> _Plan:
    """Inspect, and fit what has to be."""
    cache = Cache(recipe.cache_dir, mend=verify)
    if verify:
        cache.mend(lambda n, total: progress("verifying the cache", n, total))
    if not refit:
        recipe = settled_buckets(recipe)
        take_fits(recipe)
    elif recipe.train.start_from is not None:
        raise UsageError("--refit: codec and tokenizer are those of train.start_from, whose weights know no others")
    codec = None if refit else fitted_codec(recipe)
    text = None if refit else fitted_text(recipe)
    unfitted = codec or recipe.codec.build()
    denoiser = blueprint(recipe, unfitted)
    check_fit(recipe, unfitted, denoiser)
    try_network(recipe, unfitted)
    inspection = inspect(
        recipe.data,
        cache,
        progress=lambda n, total, _: progress("inspecting", n, total),
        verify=verify,
        decoders=decoders,
        fits=size_rule(unfitted, denoiser),
    )
    inspection.enforce_max_dropped(recipe.data)
    if recipe.data.buckets == "auto":
        recipe = keep_buckets(recipe, [size.tuple for size in inspection.config.sizes])
    frames = WindowReader(inspection, decoders, cache.files)
    fitted: list[str] = []
    if codec is None:
        codec = fit_codec(recipe, inspection, frames, progress)
        fitted.append(f"codec {recipe.codec.type}")
    if text is None:
        text = fit_text(recipe, inspection)
        fitted.append(f"tokenizer of text {recipe.text.type}")

    codec_fingerprint, text_fingerprint = codec.fingerprint(), text.fingerprint()
    pictures = pictures_of(recipe, codec, text, denoiser)
    latent_fingerprint = _latent_fingerprint(codec_fingerprint, pictures)
    keys: dict[int, tuple[str, ...]] = {}
    missing: dict[str, Piece] = {}
    for sample in inspection.samples:
        pieces = pieces_of(inspection, sample, recipe.data, latent_fingerprint)
        keys[sample.index] = tuple(piece.key for piece in pieces)
        missing.update((piece.key, piece) for piece in pieces if not cache.has(piece.key))
    captions = {caption for sample in inspection.samples for caption in sample.clip.captions} | {EMPTY}
    if not isinstance(recipe.train.sample_prompts, int):
        captions |= set(recipe.train.sample_prompts)
    if pictures is not None:
        captions = {EMPTY}
    texts = [caption for caption in sorted(captions) if not cache.has(text_key(caption, text_fingerprint))]
    return _Plan(
        recipe, cache, codec, text, inspection, frames, fitted, codec_fingerprint, text_fingerprint, pictures,
        keys, sorted(missing.values(), key=lambda piece: (piece.plan.size, piece.sample.index)), texts,
    )  # fmt: skip


def _encode(
    plan: _Plan, pieces: Sequence[Piece], engine: Engine, processes: Processes, progress: Progress
) -> list[Dropped]:
    """These latents into the cache; the clips that gave none, each once."""
    recipe = plan.recipe
    if engine.name == "ray" and pieces:
        from reelwright.prepare.ray_engine import encode_with_ray

        return encode_with_ray(
            recipe, plan.codec, plan.cache, pieces, plan.inspection.info, progress, engine.address, engine.workers,
            plan.pictures,
        )  # fmt: skip
    done = 0

    def stored(number: int) -> None:
        nonlocal done
        done += number
        total = processes.add("windows", number)  # of all processes
        progress("encoding", done if processes.count == 1 else total, len(plan.pieces))
        processes.end_with_others()

    device = resolve_device(recipe.train.device)
    windows = plan.frames.read(pieces)
    lost = encode_pieces(plan.codec, plan.cache, windows, recipe.data.cache_dtype, device, stored, plan.pictures)
    return [*plan.frames.dropped, *lost]


def _unmade(plan: _Plan, lost: Sequence[Dropped]) -> list[Piece]:
    """What no process made although none lost it: the files changed between one's look at them and another's."""
    named = {item.id for item in lost}
    return [p for p in plan.pieces if p.sample.clip.id not in named and not plan.cache.has(p.key)]


def _all_lost(plan: _Plan, lost: Sequence[Dropped]) -> list[Dropped]:
    """Each lost clip once, by id; those that share their file with a lost one among them."""
    cache, keys = plan.cache, plan.keys
    unmade = {s.clip.id for s in plan.inspection.samples if not all(cache.has(key) for key in keys[s.index])}
    reasons = {item.id: item.reason for item in reversed(lost) if item.id in unmade}  # not: read at a second try
    by_key = {p.key: reasons[p.sample.clip.id] for p in plan.pieces if p.sample.clip.id in reasons}
    for sample in plan.inspection.samples if by_key else ():
        for key in plan.keys[sample.index]:
            if key in by_key and not plan.cache.has(key):
                reasons.setdefault(sample.clip.id, by_key[key])
    return [Dropped(*item) for item in sorted(reasons.items())]


def _manifest(plan: _Plan, dropped: Sequence[Dropped]) -> Manifest:
    """What training reads, written where it differs from what is there. UserError where too many clips are lost."""
    recipe, inspection, cache = plan.recipe, plan.inspection, plan.cache
    lost = {item.id for item in dropped}
    if lost and len(inspection.dropped) + len(lost) > recipe.data.max_dropped * inspection.num_clips:
        raise UserError(too_many_lost(inspection, dropped, recipe))
    used = [sample for sample in inspection.samples if sample.clip.id not in lost]
    samples = tuple(
        PreparedSample(
            index=sample.index,
            clip=sample.clip.id,
            window=sample.window,
            start_seconds=sample.start_seconds,
            captions=sample.clip.captions,
            split=sample.split,
            size=sample.size,
            latent_size=plan.codec.compression.latent_size(sample.size),
            latent_keys=plan.keys[sample.index],
            text_keys=tuple(plan.text_key(caption) for caption in sample.clip.captions),
        )
        for sample in used
    )
    key, before = manifest_key(recipe), None
    with suppress(UserError):  # never written, or damaged
        before = read_manifest(cache, key)
    about = _about(plan, samples, used, before)
    manifest = Manifest(
        key, samples, (*inspection.dropped, *dropped), plan.codec_fingerprint, plan.text_fingerprint,
        plan.text_key(EMPTY), about,
    )  # fmt: skip
    if manifest != before:
        write_manifest(cache, manifest)
    for split in ("train", "validation"):
        clips = {sample.clip.id: sample.clip for sample in used if sample.split == split}
        write_clip_manifest(clips.values(), recipe.cache_dir / f"{split}.manifest.jsonl", split)
    return manifest


def _about(
    plan: _Plan, samples: Sequence[PreparedSample], used: Sequence[Sample], before: Manifest | None
) -> dict[str, Any]:
    """What is measured of the data by these codec and text encoder; what was measured before is not measured again."""
    old = before.samples if before is not None else ()
    known = before.about if before is not None else {}
    psnr_db, cut = known.get("codec_psnr_db"), known.get("captions_cut")
    if not known or [s.latent_keys[0] for s in samples] != [s.latent_keys[0] for s in old]:  # keys know the codec
        psnr_db = _codec_psnr(plan, used)
    if not known or [s.text_keys for s in samples] != [s.text_keys for s in old]:
        captions = sorted({caption for sample in samples for caption in sample.captions})
        cut = sum(count > plan.text.length for count in plan.text.count_tokens(captions))  # their ends are not seen
    same_text = before is not None and before.text_fingerprint == plan.text_fingerprint
    width = known["text_width"] if same_text else plan.text.width
    return {"codec_psnr_db": psnr_db, "text_width": width, "captions_cut": cut}


def _codec_psnr(plan: _Plan, samples: Sequence[Sample]) -> float | None:
    """Mean PSNR of the codec's round trip over a few windows: what no model trained on these latents can exceed."""
    fewest, most = CHECKED_WINDOWS
    count = min(len(samples), most, max(fewest, len(samples) // CHECKED_SHARE))
    chosen = [samples[number * len(samples) // count] for number in range(count)]
    device = resolve_device(plan.recipe.train.device)
    plan.codec.to(device)
    values = []
    pieces = [pieces_of(plan.inspection, s, plan.recipe.data, plan.latent_fingerprint)[0] for s in chosen]
    for piece, pixels in plan.frames.read(pieces):
        latents = plan.cache.get(piece.key)["mean"][None].float()
        with torch.no_grad():
            decoded = video_to_pixels(plan.codec.decode(latents.to(device)))[0]
        values.append(psnr(decoded.cpu().numpy(), pixels))
    finite = [value for value in values if np.isfinite(value)]
    return round(float(np.mean(finite)), 2) if finite else None
