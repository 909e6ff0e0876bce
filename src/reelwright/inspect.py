"""A folder of clips, or a recipe -> what would be trained on, what not, and why: the report, and a page of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from reelwright.bundle import blueprint, build_text, fitted_path, settled_buckets, size_rule
from reelwright.config import apply_override
from reelwright.data.buckets import bucket_cost, micro_batches
from reelwright.data.config import DataConfig
from reelwright.data.decode import BadVideo, VideoInfo, read_window
from reelwright.data.inspection import Inspection, TokenLimit, inspect, video_facts
from reelwright.data.probing import AHEAD, ahead
from reelwright.data.sandbox import Decoders
from reelwright.data.sources import Dropped
from reelwright.models.foreign import load_foreign
from reelwright.models.text import CLIPTextConfig, T5TextConfig
from reelwright.recipe import Recipe
from reelwright.report.inspection_page import MAX_CLIPS_SHOWN, write_inspection_page
from reelwright.types import Clip, Size, UsageError, UserError

THUMBNAIL_FRAMES, THUMBNAIL_HEIGHT = 3, 64
WIDEST_THUMBNAIL = 128  # pixels a frame
CLIP_TOKENS = 77  # what CLIP's text encoder reads of a caption, the most common limit

Progress = Callable[[str, int, int], None]


def inspect_data(data: Path, overrides: Sequence[str], progress: Progress, page: Path | None = None) -> Inspection:
    """List, decode and sort the whole collection of a recipe, or of a folder. Writes nothing but the page.

    UsageError where `data` is neither a recipe nor a folder.
    """
    source = _source(data, overrides)
    config = source.data if isinstance(source, Recipe) else source

    def seen(done: int, total: int, _: str) -> None:
        progress("inspecting", done, total)

    with Decoders(limits=config.limits) as decoders:
        if isinstance(source, Recipe):
            inspection = _inspect_recipe(source, decoders, seen)
        else:
            tokens = TokenLimit(_fewest_clip_tokens, CLIP_TOKENS, "CLIP's text encoder", at_least=True)
            inspection = inspect(config, progress=seen, decoders=decoders, tokens=tokens)
        if page is not None:
            _write_page(inspection, str(data), page, decoders, progress)
    return inspection


def _source(data: Path, overrides: Sequence[str]) -> Recipe | DataConfig:
    """The recipe, or a folder under the default settings.

    Overrides of a folder are those of a recipe's data group, with or without its name: `data.frames=8`, `frames=8`.
    """
    if data.is_dir():
        values: dict[str, object] = {"path": str(data)}
        inner = [override.removeprefix("data.") for override in overrides]
        for override in inner:
            apply_override(values, override)
        return DataConfig.parse(values, str(data), inner)
    if data.suffix in (".yaml", ".yml"):
        return Recipe.load(data, overrides)
    raise UsageError(f"{data}: neither a folder of captioned clips nor a recipe (*.yaml)")


def _inspect_recipe(recipe: Recipe, decoders: Decoders, seen: Callable[[int, int, str], None]) -> Inspection:
    """What codec, model and text encoder say of the clips is part of it."""
    recipe = settled_buckets(recipe)
    tokens = token_limit(recipe)
    try:
        codec = recipe.codec.build()
    except UserError as reason:  # the clips can be inspected without it
        inspection = inspect(recipe.data, progress=seen, decoders=decoders, tokens=tokens)
        told = Dropped(f"codec {recipe.codec.type}", f"{reason}; without it no micro-batches are shown")
        return replace(inspection, notes=(told, *inspection.notes))
    fits = size_rule(codec, blueprint(recipe, codec))
    inspection = inspect(recipe.data, progress=seen, decoders=decoders, fits=fits, tokens=tokens)
    train, compression = recipe.train, codec.compression
    costs = {
        size: bucket_cost(compression.latent_size(size), train.micro_batch_power)
        for size in inspection.buckets()
        if fits(size)
    }
    most = train.batch_size if train.micro_batch == "auto" else min(train.micro_batch, train.batch_size)
    return replace(inspection, micro_batches=micro_batches(costs, most, train.batch_size, train.together))


def token_limit(recipe: Recipe) -> TokenLimit | None:
    """How the recipe's text encoder counts tokens; None where it reads no text.

    Its tokenizer alone is loaded; where there is none yet, words are counted, which are fewer than tokens.
    """
    text = recipe.text
    if text.type == "native" and fitted_path(recipe, "text").exists():
        return TokenLimit(build_text(recipe).count_tokens, text.length, "the text encoder")
    if isinstance(text, (CLIPTextConfig, T5TextConfig)):
        from transformers import AutoTokenizer

        model, subfolder = text.model, text.tokenizer_subfolder
        with suppress(UserError):  # whoever prepares will be told; captions can be judged without it
            tokenizer = load_foreign(
                lambda: AutoTokenizer.from_pretrained(model, subfolder=subfolder, trust_remote_code=False),
                model, "text.model", subfolder,
            )  # fmt: skip
            return TokenLimit(
                lambda captions: [len(ids) for ids in tokenizer(captions, truncation=False)["input_ids"]],
                text.length,
                f"text.model = {model}",
            )
    length = getattr(text, "length", None)
    if length is None:
        return None
    return TokenLimit(lambda captions: [len(c.split()) + 1 for c in captions], length, "the text encoder", True)


def _fewest_clip_tokens(captions: list[str]) -> list[int]:
    """A lower bound without CLIP's vocabulary: a token or more for each word, digit and run of signs, and two marks."""
    return [len(re.findall(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+", caption)) + 2 for caption in captions]


def _write_page(inspection: Inspection, title: str, path: Path, decoders: Decoders, progress: Progress) -> None:
    """A self-contained page with a strip of frames of every clip that decodes, used or not."""
    samples = [sample for sample in inspection.samples if sample.window == 0]
    notes: dict[str, list[str]] = {}
    for note in inspection.notes:
        notes.setdefault(note.id, []).append(note.reason)
    used: list[dict[str, Any]] = []
    dropped: dict[str, dict[str, Any]] = {i.id: {"id": i.id, "reason": i.reason} for i in inspection.dropped}
    parts: list[_Part] = []
    for sample in samples:
        facts, info = _facts(inspection, sample.clip, sample.sha256), inspection.info(sample)
        used.append({**facts, "split": sample.split, "noted": notes.get(sample.clip.id)})
        end = sample.start_seconds + (sample.size.frames - 1) / inspection.config.fps
        if sample.end_seconds is not None:  # one frame past the last one
            times = info.timestamps - info.first_seconds
            end = float(times[times < sample.end_seconds - 1e-6][-1])
        parts.append(_Part(sample.clip, info, sample.start_seconds, end))
    del parts[MAX_CLIPS_SHOWN:]
    for clip, sha256 in inspection.decoded[:MAX_CLIPS_SHOWN]:
        info = inspection.infos[sha256]
        dropped[clip.id] |= _facts(inspection, clip, sha256)
        parts.append(_Part(clip, info, 0.0, float(info.timestamps[-1]) - info.first_seconds))
    strips = ahead(parts, lambda part: _strip(decoders, part), AHEAD * decoders.workers)
    thumbnails: dict[str, bytes] = {}
    for number, (part, strip) in enumerate(zip(parts, strips, strict=True), start=1):
        if strip is not None:
            thumbnails[part.clip.id] = strip
        progress("thumbnails", number, len(parts))
    page = {**inspection.to_json(), "path": title, "clips": used, "dropped": list(dropped.values())}
    write_inspection_page(page, thumbnails, path)


def _facts(inspection: Inspection, clip: Clip, sha256: str) -> dict[str, Any]:
    facts = video_facts(inspection.infos[sha256])
    return {
        "id": clip.id,
        "captions": clip.captions,
        **{name: facts[name] for name in ("frames", "fps", "width", "height")},
        "cuts": inspection.cuts.get(sha256),
    }


class _Part(NamedTuple):
    """What a strip of pictures shows: a clip from start to end, in seconds after its first timestamp."""

    clip: Clip
    info: VideoInfo
    start: float
    end: float


def _strip(decoders: Decoders, part: _Part) -> Callable[[], bytes | None]:
    """Begins to decode a few small frames, evenly from start to end; gives what waits for the PNG of them side by side.

    None where they do not decode: the page shows the clip without a picture, and preparing names the reason.
    """
    info, seconds = part.info, part.end - part.start
    frames = min(THUMBNAIL_FRAMES, info.num_frames) if seconds > 0 else 1
    width = min(WIDEST_THUMBNAIL, max(8, round(THUMBNAIL_HEIGHT * info.width / info.height)))
    fps = (frames - 1) / seconds if frames > 1 else 1.0
    size = Size(frames, THUMBNAIL_HEIGHT, width)
    future = decoders.submit(read_window, part.clip.video, size, fps, part.start, info)

    def finish() -> bytes | None:
        try:
            pictures = future.result()
        except BadVideo:
            return None
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(list(pictures), axis=1)).save(buffer, format="PNG")
        return buffer.getvalue()

    return finish
