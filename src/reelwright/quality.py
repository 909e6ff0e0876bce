"""One set of videos, measured beside real ones: CLIP score, motion, Frechet distance; and how fast a model makes them.

The set is generated (or read) once and shared by every metric. No figure comes alone: each table holds the rows that
a broken video, a broken metric or chance would give.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelwright.data.buckets import playable_span
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import BadVideo, VideoInfo, probe, read_window
from reelwright.data.inspection import Sample, inspect
from reelwright.data.sources import read_listing
from reelwright.data.windows import WindowReader
from reelwright.generate import Compute, generate_videos
from reelwright.loading import LoadedModel
from reelwright.metrics.clip import ClipModel, Preprocessing, caption_cosines, clip_score, read_preprocessor_config
from reelwright.metrics.features import FeatureNetwork
from reelwright.metrics.frechet import frechet_curve
from reelwright.metrics.statistics import mean_interval, wilson_interval
from reelwright.metrics.temporal import (
    LARGEST_SIDE,
    MOVING_PIXELS,
    Motion,
    feature_consistency,
    luma_consistency,
    measure_motion,
)
from reelwright.models.foreign import content_hash, freeze, load_foreign
from reelwright.prepare import open_prepared
from reelwright.randomness import derive_seed, keyed_generator
from reelwright.recipe import Recipe, SamplingConfig
from reelwright.shapes.controls import CONTROLS
from reelwright.types import Clip, Size, UsageError, UserError
from reelwright.video.write import FORMATS, read_recipe

Progress = Callable[[str, int, int], None]
Table = tuple[str, list[str], list[list[str]]]  # title, headers, rows

LONGEST = 64  # frames read of each video of a folder
MOTION_CONTROLS = ("frozen", "noise")
CONTROL_VIDEOS = 32  # of the made ones, spoilt for the control rows
SPEED_REPEATS = 6  # fastest and slowest of six enclose the median with 96.9 % confidence (1 - 2 / 2^6)


@dataclass
class Measured:
    """What one or several metrics gave: score rows, printable tables, notes, and figures of each video."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # {"row", "split", "metric", "value", "low", "high", "n"}
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    per_video: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by metric


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


def real_clips(
    recipe: Recipe, split: str, limit: int, progress: Progress
) -> tuple[list[tuple[Sample, np.ndarray]], list[str]]:
    """First windows of the prepared "train" or "validation" clips of the recipe's size, at most `limit`: (sample, uint8
    `f h w c`), and a note for each that does not decode any more."""
    prepared = open_prepared(recipe)
    dataset = prepared.training if split == "train" else prepared.validation
    wanted = {sample.clip for sample in dataset.samples.values()}
    inspection = inspect(recipe.data, Cache(recipe.cache_dir), progress=lambda n, of, _: progress("inspecting", n, of))
    samples = [s for s in inspection.samples if s.window == 0 and s.size == recipe.size and s.clip.id in wanted]
    reader = WindowReader(inspection, recipe.data.fps)
    found = []
    for sample, frames in reader.read(samples[:limit]):
        found.append((sample, frames))
        progress("reading real clips", len(found), min(limit, len(samples)))
    return found, [f"real clip {item.id} left out: {item.reason}" for item in reader.dropped]


def model_subjects(
    model: LoadedModel, sampling: SamplingConfig, compute: Compute, limit: int, seed: int, progress: Progress
) -> Subjects:
    """A video of each held-out clip's first caption beside the clip; of training clips where fewer than two are held
    out. UsageError where there are not two of those either."""
    recipe = model.recipe
    clips, notes = real_clips(recipe, "validation", limit, progress)
    split = "held-out captions"
    if len(clips) < 2:
        clips, notes = real_clips(recipe, "train", limit, progress)
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


def folder_subjects(folder: Path, real: Path | None, limit: int, progress: Progress) -> Subjects:
    """The captioned videos of a folder, and of `real` at the same frames, size and frame rate.

    Size and rate are those most of the folder's videos have, the length that of the shortest, up to 64 frames.
    UsageError where fewer than two can be read; a note names each that cannot.
    """
    notes: list[str] = []
    made = _probed(folder, limit, notes, progress)
    size = Counter((info.height, info.width) for _, info in made).most_common(1)[0][0]
    fps = Counter(round(info.fps, 3) for _, info in made).most_common(1)[0][0] or 1.0
    spans = [end - start for start, end in (playable_span(info, clip) for clip, info in made)]
    whole = Size(max(1, min(LONGEST, 1 + int(min(spans) * fps))), *size)
    found = [_read_set("videos", folder, made, whole, fps, notes, progress)]
    if real is not None:
        others = _probed(real, limit, notes, progress)
        found.append(_read_set("real clips", real, others, whole, fps, notes, progress))
    return Subjects(found[0], found[1] if real else None, f"captions of {folder.name}", whole, fps, tuple(notes))


def _probed(folder: Path, limit: int, notes: list[str], progress: Progress) -> list[tuple[Clip, VideoInfo]]:
    """The first `limit` clips with what decoding them showed; a note for each left out."""
    clips = captioned_clips(folder, notes)
    found = []
    for number, clip in enumerate(clips[:limit], start=1):
        try:
            found.append((clip, probe(clip.video)))
        except BadVideo as bad:
            notes.append(f"{folder}: {clip.id} left out: {bad}")
        progress(f"reading {folder.name}", number, min(limit, len(clips)))
    if not found:
        raise UsageError(f"{folder}: none of its {len(clips)} videos can be read. {' '.join(notes[:3])}")
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
            videos.append(read_window(clip.video, size, fps, start, info))
            captions.append(clip.captions[0])
        except BadVideo as bad:
            notes.append(f"{folder}: {clip.id} left out: {bad}")
        progress(f"decoding {name}", number, len(clips))
    if len(videos) < 2:
        there = f"{len(videos)} videos of {size.frames} frames at {fps:g} fps"
        raise UsageError(f"{folder}: {there}; two are needed. {' '.join(notes[:3])}")
    return VideoSet(name, videos, captions)


def load_clip(source: str, device: torch.device) -> ClipModel:
    """Any CLIP of transformers' kind by directory or hub id, safetensors only.

    UserError where it is not to be had, is no CLIP, or wants a preprocessing that is not known here.
    """
    import transformers

    def load(part: Any, **options: Any) -> Any:
        return load_foreign(lambda: part.from_pretrained(source, trust_remote_code=False, **options), source, "--clip")

    settings = load(transformers.AutoConfig)
    if settings.model_type != "clip":
        raise UserError(f"--clip {source}: holds a {settings.model_type}, no CLIP; give a directory or hub id of one")
    tokenizer = load(transformers.AutoTokenizer)
    network, report = load(transformers.CLIPModel, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):  # transformers would fill them at random
        raise UserError(f"--clip {source}: {len(missing)} of its tensors are missing, as {missing[0]}; fetch it again")
    freeze(network)
    try:
        values = load_foreign(lambda: read_preprocessor_config(source), source, "--clip")
        preprocessing = Preprocessing.from_config(values, settings.vision_config.image_size)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--clip {source}: {error}") from None
    sha256 = content_hash({}, network.state_dict())
    return ClipModel(network.to(device), tokenizer, preprocessing, source, sha256, device)


def measure_clip(subjects: Subjects, clip: ClipModel, seed: int, progress: Progress) -> Measured:
    """Cosine of every caption with its video's frames: made and real, each beside the same with captions shuffled."""
    result = Measured(notes=[f"CLIP: {clip.name} (sha256 of the weights {clip.sha256[:12]})"])
    table: list[list[str]] = []
    for videos in subjects.sets:
        frames = _frame_features(subjects, videos, clip, progress)
        order = derangement(len(videos.captions), seed)
        text = clip.text_features(videos.captions)
        cosines = {"matched": caption_cosines(frames, text), "shuffled": caption_cosines(frames, text[order])}
        for kind, values in cosines.items():
            row = videos.name if kind == "matched" else f"{videos.name}, shuffled captions"
            result.rows.append(_mean_row(row, subjects.split, "CLIP cosine", values))
            result.rows.append(_mean_row(row, subjects.split, "CLIPScore", clip_score(values)))
            table.append(
                [row, with_interval(values, 4), with_interval(100 * values, 2), with_interval(clip_score(values), 3),
                 str(len(values))]
            )  # fmt: skip
        gain = cosines["matched"] - cosines["shuffled"]
        result.rows.append(_mean_row(videos.name, subjects.split, "CLIP cosine, matched minus shuffled", gain))
        result.notes.append(f"{videos.name}: CLIP cosine, matched minus shuffled: {with_interval(gain, 4)}")
        result.per_video[f"clip, {videos.name}"] = [
            {"caption": caption, "cosine": float(own), "shuffled_caption": videos.captions[other],
             "shuffled_cosine": float(others)}
            for caption, other, own, others in zip(videos.captions, order, *cosines.values(), strict=True)
        ]  # fmt: skip
    for row in result.rows:
        row["network"] = f"{clip.name} {clip.sha256[:12]}"
    captions = {caption for videos in subjects.sets for caption in videos.captions}
    if cut := sum(count > clip.longest for count in clip.count_tokens(sorted(captions))):
        result.notes.append(f"{cut} captions have more than CLIP's {clip.longest} tokens: their ends are not seen")
    headers = ["row", "cosine, frame mean", "x 100", "CLIPScore, 2.5 max(cosine, 0)", "n"]
    result.tables.append((f"CLIP score of {subjects.split} [95 % intervals over videos]", headers, table))
    return result


def derangement(count: int, seed: int) -> list[int]:
    """A random order that leaves none of `count` (two or more) in its place."""
    circle = torch.randperm(count, generator=keyed_generator("shuffled captions", seed)).tolist()
    order = [0] * count
    for here, there in zip(circle, circle[1:] + circle[:1], strict=True):
        order[here] = there
    return order


def _frame_features(subjects: Subjects, videos: VideoSet, clip: ClipModel, progress: Progress) -> list[Tensor]:
    """`f d` of each video, computed once."""
    if videos.name not in subjects.features:
        rows = subjects.features[videos.name] = []
        for number, video in enumerate(videos.videos, start=1):
            rows.append(clip.frame_features(video))
            progress(f"CLIP features of {videos.name}", number, len(videos.videos))
    return subjects.features[videos.name]


def measure_temporal(
    subjects: Subjects, clip: ClipModel | None, device: torch.device, seed: int, progress: Progress, whole: bool = True
) -> Measured:
    """Dynamic degree, and beside it (`whole`) frame consistency and warping error; with the made videos frozen and
    turned to noise, either of which would win one of the columns by itself."""
    if subjects.size.frames < 2:
        raise UsageError("metrics temporal and dynamic: the videos have one frame; they need at least two")
    spoilt = [
        VideoSet(f"{subjects.made.name}, {name}", [CONTROLS[name](v, seed + i) for i, v in enumerate(few)], [])
        for few in [subjects.made.videos[:CONTROL_VIDEOS]]
        for name in MOTION_CONTROLS
    ]
    consistency = f"frame consistency ({'CLIP cosine' if clip else 'SSIM of luma'})"
    result, table = Measured(), []
    for videos in [subjects.sets[0], *spoilt, *subjects.sets[1:]]:
        motions: list[Motion] = []
        for number, video in enumerate(videos.videos, start=1):
            motions.append(measure_motion(video, device))
            progress(f"optical flow of {videos.name}", number, len(videos.videos))
        columns = {"dynamic degree (pixels a frame at 256)": [m.dynamic_degree for m in motions]}
        if whole:
            if clip:
                features = _frame_features(subjects, videos, clip, progress)
                columns[consistency] = [feature_consistency(frames) for frames in features]
            else:
                columns[consistency] = [luma_consistency(video, device) for video in videos.videos]
            columns["warping error"] = [m.warping_error for m in motions if m.warping_error is not None]
            columns["change not explained by motion"] = [m.unexplained for m in motions if m.unexplained is not None]
        result.rows += [_mean_row(videos.name, subjects.split, name, v) for name, v in columns.items() if v]
        moving, n = sum(m.moves for m in motions), len(motions)
        low, high = wilson_interval(moving, n)
        result.rows.append(
            {"row": videos.name, "split": subjects.split, "metric": "clips that move", "value": moving / n, "low": low,
             "high": high, "n": n}
        )  # fmt: skip
        cells = [
            with_interval(v, digits) if v else "-" for v, digits in zip(columns.values(), (2, 4, 5, 3), strict=False)
        ]
        table.append([videos.name, f"{moving / n:.0%}", *cells, str(n)])
        headers = ["row", "move", *columns, "n"]
    title = "motion from frame to frame [95 % intervals over videos]; no column means anything without the others"
    result.tables.append((title if whole else title.split(";")[0], headers, table))
    result.notes.append(
        f"flow on frames of at most {LARGEST_SIDE} pixels at the shorter side; a clip moves where the fastest 5 % of a "
        f"quarter of its frames reach {MOVING_PIXELS} pixels a frame (at 256)"
    )
    return result


def measure_frechet(subjects: Subjects, network: FeatureNetwork, seed: int, progress: Progress) -> Measured:
    """Frechet distance of the made videos' features to the real ones', at N, N/2 and N/4, beside real against real."""
    assert subjects.real is not None, "checked before anything was made"

    def features(videos: VideoSet) -> np.ndarray:
        return network.features(videos.videos, lambda n, of: progress(f"features of {videos.name}", n, of))

    metric = f"Frechet video distance ({network.name})"
    result, table = Measured(notes=[f"Frechet distance: {network.protocol}"]), []
    for point in frechet_curve(features(subjects.real), features(subjects.made), seed):
        for row, value in ((subjects.made.name, point.distance), ("real clips against real clips", point.floor)):
            if value is not None:
                result.rows.append(
                    {"row": row, "split": subjects.split, "metric": metric, "value": value, "low": None, "high": None,
                     "n": point.n, "network": network.protocol}
                )  # fmt: skip
        floor = "-" if point.floor is None else f"{point.floor:.3f}"
        few = f"too few: {network.dim} features need more videos than that" if point.n <= network.dim else ""
        table.append([str(point.n), str(point.pairs), f"{point.distance:.3f}", floor, few])
    headers = ["videos a side", "mean of", f"{subjects.made.name} against real", "real against real", "warning"]
    result.tables.append((f"{metric}: lower is nearer, equal numbers of videos alone compare", headers, table))
    return result


def measure_speed(
    model: LoadedModel, sampling: SamplingConfig, compute: Compute, progress: Progress, repeats: int = SPEED_REPEATS
) -> Measured:
    """Frames a second, one video at a time from prompt to pixels, as `generate` makes them; the first is warm-up."""
    size = model.recipe.size
    speeds: list[float] = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        generate_videos(model.bundle, ["a video"], [repeat], size, sampling, compute)  # ends with pixels on the CPU
        if repeat:
            speeds.append(size.frames / (time.perf_counter() - started))
        progress("timing generation", repeat + 1, repeats + 1)
    median = statistics.median(speeds)
    row = {
        "row": "model", "split": f"{size}, {sampling.steps} steps", "metric": "generated frames per second",
        "value": median, "low": min(speeds), "high": max(speeds), "n": repeats,
    }  # fmt: skip
    device = f"{compute.device} ({_device_name(compute.device)}), {compute.precision}"
    cells = [f"{median:.2f}", f"{min(speeds):.2f} to {max(speeds):.2f}", str(repeats), str(size), device]
    cells += [f"{sampling.sampler} {sampling.steps}", f"{sampling.guidance:g}"]
    headers = ["frames/s, median", "slowest to fastest", "videos", "size", "device", "sampler, steps", "guidance"]
    title = "speed of generation: sampling and decoding, one video at a time, after one for warm-up"
    return Measured([row], [(title, headers, [cells])])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _mean_row(row: str, split: str, metric: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    low, high = mean_interval(values)
    return {"row": row, "split": split, "metric": metric, "value": float(np.mean(values)), "low": low, "high": high,
            "n": len(values)}  # fmt: skip


def with_interval(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Mean and its 95 % interval, as tables print them."""
    low, high = mean_interval(values)
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
