"""What is measured: videos with their captions, generated or read once, and the real clips they are held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from reelwright.data.buckets import playable_span
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import BadVideo, VideoInfo, probe, read_window
from reelwright.data.inspection import Sample, inspect
from reelwright.data.sandbox import Decoders
from reelwright.data.sources import read_listing
from reelwright.data.windows import WindowReader
from reelwright.generate import Compute, generate_videos
from reelwright.loading import LoadedModel
from reelwright.prepare import open_prepared
from reelwright.prepare.pieces import pieces_of
from reelwright.randomness import derive_seed
from reelwright.recipe import Recipe, SamplingConfig
from reelwright.types import Clip, Size, UsageError, UserError
from reelwright.video.write import FORMATS, read_recipe

Progress = Callable[[str, int, int], None]
Item = TypeVar("Item")

LONGEST = 64  # frames read of each video of a folder


@dataclass(frozen=True)
class VideoSet:
    """Videos of one maker with a caption each; `name` is their row in every table."""

    name: str
    videos: list[np.ndarray]  # uint8 f h w c, all of one size
    captions: list[str]


@dataclass(frozen=True)
class Subjects:
    """What is measured and the real clips it is held against, at equal frames, size and frame rate."""

    made: VideoSet
    real: VideoSet | None  # None: a folder was measured, and no --real given
    split: str  # where the captions come from
    size: Size
    fps: float
    notes: tuple[str, ...] = ()
    features: dict[str, list[Tensor]] = field(default_factory=dict)  # CLIP's, by row: several metrics take them

    @property
    def sets(self) -> list[VideoSet]:
        return [self.made] if self.real is None else [self.made, self.real]


def draw(items: Sequence[Item], count: int, seed: int, name: Callable[[Item], str]) -> list[Item]:
    """At most `count` of them at random by seed and name, in their own order; fewer are always among more."""
    ranked = sorted(range(len(items)), key=lambda place: derive_seed("measured clips", seed, name(items[place])))
    return [items[place] for place in sorted(ranked[:count])]


def real_clips(
    recipe: Recipe, split: str, limit: int, seed: int, progress: Progress
) -> tuple[list[tuple[Sample, np.ndarray]], list[str]]:
    """First windows of prepared "train" or "validation" clips of the recipe's size, `limit` of them at random:
    (sample, uint8 `f h w c`), and a note for each that does not decode any more."""
    prepared = open_prepared(recipe)
    recipe = prepared.recipe  # with the buckets its samples have
    dataset = prepared.training if split == "train" else prepared.validation
    wanted = {sample.clip for sample in dataset.samples.values()}
    found: list[tuple[Sample, np.ndarray]] = []
    with Decoders(limits=recipe.data.limits) as decoders:
        cache = Cache(recipe.cache_dir)
        inspection = inspect(
            recipe.data,
            cache,
            progress=lambda n, of, _: progress("inspecting", n, of),
            decoders=decoders,
        )
        samples = [s for s in inspection.samples if s.window == 0 and s.size == recipe.size and s.clip.id in wanted]
        chosen = draw(samples, limit, seed, lambda sample: sample.clip.id)
        reader = WindowReader(inspection, decoders, cache.files)
        plain = [pieces_of(inspection, sample, recipe.data, "")[0] for sample in chosen]
        for piece, frames in reader.read(plain):
            found.append((piece.sample, frames))
            progress("reading real clips", len(found), len(chosen))
    return found, [f"real clip {item.id} left out: {item.reason}" for item in reader.dropped]


def model_subjects(
    model: LoadedModel, sampling: SamplingConfig, compute: Compute, limit: int, seed: int, progress: Progress
) -> Subjects:
    """A video of each held-out clip's first caption beside the clip; of training clips where fewer than two are held
    out. UsageError where there are not two of those either."""
    recipe = model.recipe
    clips, notes = real_clips(recipe, "validation", limit, seed, progress)
    split = "held-out captions"
    if len(clips) < 2:
        clips, notes = real_clips(recipe, "train", limit, seed, progress)
        split = "training captions"
        notes.append("fewer than two clips are held out: prompts and real clips are those the model was trained on")
    if len(clips) < 2:
        raise UsageError(
            f"{recipe.data.path}: {len(clips)} clips of {recipe.size}; the scores need at least two with captions"
        )
    captions = [sample.clip.captions[0] for sample, _ in clips]
    seeds = [derive_seed("evaluate", seed, split, sample.index) for sample, _ in clips]
    videos = generate_videos(
        model.bundle, captions, seeds, recipe.size, sampling, compute,
        on_step=lambda done, total: progress(f"generating {split}", done, total),
    )  # fmt: skip
    real = VideoSet("real clips", [frames for _, frames in clips], captions)
    return Subjects(VideoSet("model", videos, captions), real, split, recipe.size, recipe.data.fps, tuple(notes))


def folder_subjects(folder: Path, real: Path | None, limit: int, seed: int, progress: Progress) -> Subjects:
    """The captioned videos of a folder, `limit` of them at random, and of `real` at the same frames, size and rate.

    Size and rate are those most of the folder's videos have, the length that of the shortest, up to 64 frames.
    UsageError where fewer than two can be read; a note names each that cannot.
    """
    with Decoders() as decoders:
        return _folder_subjects(decoders, folder, real, limit, seed, progress)


def _folder_subjects(
    decoders: Decoders, folder: Path, real: Path | None, limit: int, seed: int, progress: Progress
) -> Subjects:
    notes: list[str] = []
    made = _probed(decoders, folder, limit, seed, notes, progress)
    size = Counter((info.height, info.width) for _, info in made).most_common(1)[0][0]
    fps = Counter(round(info.fps, 3) for _, info in made).most_common(1)[0][0] or 1.0
    spans = [end - start for start, end in (playable_span(info, clip) for clip, info in made)]
    whole = Size(max(1, min(LONGEST, 1 + int(min(spans) * fps))), *size)
    found = [_read_set(decoders, "videos", folder, made, whole, fps, notes, progress)]
    if real is not None:
        others = _probed(decoders, real, limit, seed, notes, progress)
        found.append(_read_set(decoders, "real clips", real, others, whole, fps, notes, progress))
    return Subjects(found[0], found[1] if real else None, f"captions of {folder.name}", whole, fps, tuple(notes))


def _probed(
    decoders: Decoders, folder: Path, limit: int, seed: int, notes: list[str], progress: Progress
) -> list[tuple[Clip, VideoInfo]]:
    """`limit` of the clips with what decoding them showed; a note for each left out."""
    clips = captioned_clips(folder, notes)
    chosen = draw(clips, limit, seed, lambda clip: clip.id)
    found = []
    for number, clip in enumerate(chosen, start=1):
        try:
            found.append((clip, decoders.call(probe, clip.video)))
        except BadVideo as bad:
            notes.append(f"{folder}: {clip.id} left out: {bad}")
        progress(f"reading {folder.name}", number, len(chosen))
    if not found:
        raise UsageError(f"{folder}: none of its {len(chosen)} videos can be read. {' '.join(notes[:3])}")
    return found


def captioned_clips(folder: Path, notes: list[str]) -> list[Clip]:
    """Clips in the order of their names, captioned as a training collection is; where nothing captions them, by the
    prompts that generated videos carry. UsageError where neither is there."""
    try:
        listing = read_listing(DataConfig.parse({"path": str(folder)}, origin=str(folder)))
        notes += [f"{folder}: {item.id} left out: {item.reason}" for item in listing.dropped]
        return list(listing.clips)
    except UsageError as error:
        clips = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix.lower() in FORMATS and not path.name.startswith("."):
                try:
                    clips.append(Clip(path.name, path, (str(read_recipe(path)["prompt"]),), path.name))
                except (UserError, KeyError):
                    notes.append(f"{path} left out: it has no caption, and carries no prompt")
        if not clips:
            raise UsageError(f"{folder}: neither a model nor a folder of captioned videos: {error}") from None
        return clips


def _read_set(
    decoders: Decoders,
    name: str,
    folder: Path,
    clips: Sequence[tuple[Clip, VideoInfo]],
    size: Size,
    fps: float,
    notes: list[str],
    progress: Progress,
) -> VideoSet:
    """Their first windows of `size`; a note for each that does not last that long. UsageError for fewer than two."""
    videos, captions = [], []
    for number, (clip, info) in enumerate(clips, start=1):
        try:
            start, end = playable_span(info, clip)
            if start + (size.frames - 1) / fps > end + 1e-6:
                raise BadVideo(f"shorter than {size.frames} frames at {fps:g} fps")
            videos.append(decoders.call(read_window, clip.video, size, fps, start, info))
            captions.append(clip.captions[0])
        except BadVideo as bad:
            notes.append(f"{folder}: {clip.id} left out: {bad}")
        progress(f"decoding {name}", number, len(clips))
    if len(videos) < 2:
        there = f"{len(videos)} videos of {size.frames} frames at {fps:g} fps"
        raise UsageError(f"{folder}: {there}; two are needed. {' '.join(notes[:3])}")
    return VideoSet(name, videos, captions)
