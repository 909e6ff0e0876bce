"""Metrics of a set of videos, each with the rows it must be held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelwright.generate import Compute, generate_videos
from reelwright.loading import LoadedModel
from reelwright.metrics.clip import ClipModel, caption_cosines, clip_score
from reelwright.metrics.features import FeatureNetwork
from reelwright.metrics.frames import mse, psnr
from reelwright.metrics.frechet import frechet_curve
from reelwright.metrics.statistics import mean_interval, possible_range, wilson_interval
from reelwright.metrics.temporal import (
    LARGEST_SIDE,
    MOVING_PIXELS,
    Motion,
    feature_consistency,
    luma_consistency,
    measure_motion,
)
from reelwright.quality.subjects import Progress, Subjects, VideoSet, real_clips
from reelwright.randomness import keyed_generator
from reelwright.recipe import SamplingConfig
from reelwright.shapes.controls import CONTROLS
from reelwright.types import UsageError

Table = tuple[str, list[str], list[list[str]]]  # title, headers, rows
Pair = tuple[np.ndarray, np.ndarray, str]  # a clip and what was made of its caption, both uint8 f h w c; a label

MOTION_CONTROLS = ("frozen", "noise")
CONTROL_VIDEOS = 32  # of the made ones, spoilt for the control rows
SPEED_REPEATS = 6  # fastest and slowest of six enclose the median with 96.9 % confidence (1 - 2 / 2^6)


@dataclass
class Measured:
    """What one or several metrics gave: score rows, printable tables, notes, and figures of each video."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # as RunDirectory.write_scores takes them
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    per_video: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by metric


def measure_nearest(
    model: LoadedModel, sampling: SamplingConfig, compute: Compute, limit: int, seed: int, progress: Progress
) -> tuple[Measured, list[Pair]]:
    """Does each caption bring back its own clip? Nearest by pixel MSE among the training clips, and PSNR to its own;
    with each clip, what was made of its caption, and a label."""
    found, notes = real_clips(model.recipe, "train", limit, seed, progress)
    if len(found) < 2:
        raise UsageError("metric nearest: needs at least two training clips of the recipe's size")
    samples, clips = [sample for sample, _ in found], [frames for _, frames in found]
    captions = [s.clip.captions[0] for s in samples]
    videos = generate_videos(
        model.bundle, captions, [seed] * len(samples), model.recipe.size, sampling, compute,
        on_step=lambda done, total: progress("generating", done, total),
    )  # fmt: skip
    errors = np.array([[mse(video, clip) for clip in clips] for video in videos])  # videos clips
    hits = errors.argmin(axis=1) == np.arange(len(clips))
    decibels = [psnr(video, clip) for video, clip in zip(videos, clips, strict=True)]
    low, high = wilson_interval(int(hits.sum()), len(hits))
    share = {"split": "train", "metric": "own clip is nearest", "n": len(hits)}
    figures = [
        {"row": "model", **share, "value": float(hits.mean()), "low": low, "high": high},
        {"row": "chance", **share, "value": 1 / len(hits), "low": None, "high": None},
        _mean_row("model", "train", "PSNR to own clip (dB)", decibels),
    ]
    cells = [
        [s.clip.id, f"{value:.2f}", "yes" if hit else f"no: {samples[int(errors[i].argmin())].clip.id}"]
        for i, (s, value, hit) in enumerate(zip(samples, decibels, hits, strict=True))
    ]
    title = (
        f"nearest clip: {hits.sum()} of {len(hits)} their own, {hits.mean():.1%} [{low:.1%}, {high:.1%}] where chance "
        f"gives {1 / len(hits):.1%}; mean PSNR {with_interval('PSNR to own clip (dB)', decibels, 2)} dB"
    )
    labels = [f"{caption} ({value:.1f} dB)" for caption, value in zip(captions, decibels, strict=True)]
    measured = Measured(figures, [(title, ["clip", "PSNR dB", "nearest is its own"], cells)], notes)
    return measured, list(zip(clips, videos, labels, strict=True))


def measure_clip(subjects: Subjects, clip: ClipModel, seed: int, progress: Progress) -> Measured:
    """Cosine of every caption with its video's frames: made and real, each beside the same with captions shuffled."""
    result = Measured(notes=[f"CLIP: {clip.name} (sha256 of the weights {clip.sha256[:12]})"])
    table: list[list[str]] = []
    for videos in subjects.sets:
        frames = _frame_features(subjects, videos, clip, progress)
        order = derangement(videos.captions, seed)
        others = [videos.captions[place] for place in order]
        differs = np.array([own != other for own, other in zip(videos.captions, others, strict=True)])
        text = clip.text_features(videos.captions)
        own, other = caption_cosines(frames, text), caption_cosines(frames, text[order])
        rows = {videos.name: own}
        if differs.any():
            rows[f"{videos.name}, shuffled captions"] = other[differs]
            gain = (own - other)[differs]
            result.rows.append(_mean_row(videos.name, subjects.split, "CLIP cosine, matched minus shuffled", gain))
            told = with_interval("CLIP cosine, matched minus shuffled", gain, 4)
            result.notes.append(f"{videos.name}: CLIP cosine, matched minus shuffled: {told}")
        for row, values in rows.items():
            scores = clip_score(values)
            result.rows.append(_mean_row(row, subjects.split, "CLIP cosine", values))
            result.rows.append(_mean_row(row, subjects.split, "CLIPScore", scores))
            cells = [with_interval("CLIP cosine", values, 4), with_interval("CLIP cosine", values, 2, scale=100)]
            cells.append(with_interval("CLIPScore", scores, 3))
            table.append([row, *cells, str(len(values))])
        if same := int((~differs).sum()):
            result.notes.append(
                f"{videos.name}: one caption is that of more than half of the videos, so {same} of {len(differs)} find "
                "none with other words: they are left out of the shuffled row"
            )
        result.per_video[f"clip, {videos.name}"] = [
            {"caption": videos.captions[n], "cosine": float(own[n]), "shuffled_caption": others[n],
             "shuffled_cosine": float(other[n])}
            for n in range(len(order))
        ]  # fmt: skip
    for row in result.rows:
        row["network"] = _identity(clip)
    captions = {caption for videos in subjects.sets for caption in videos.captions}
    if cut := sum(count > clip.longest for count in clip.count_tokens(sorted(captions))):
        result.notes.append(f"{cut} captions have more than CLIP's {clip.longest} tokens: their ends are not seen")
    headers = ["row", "cosine, frame mean", "x 100", "CLIPScore, 2.5 max(cosine, 0)", "n"]
    result.tables.append((f"CLIP score of {subjects.split} [95 % intervals over videos]", headers, table))
    return result


def derangement(captions: Sequence[str], seed: int) -> list[int]:
    """For each caption the place of another, at random: of other words wherever none is that of more than half of them;
    else as few as can be find but the same words."""
    groups: dict[str, list[int]] = {}
    places: list[int] = torch.randperm(len(captions), generator=keyed_generator("shuffled captions", seed)).tolist()
    for place in places:
        groups.setdefault(captions[place], []).append(place)
    circle = [place for group in groups.values() for place in group]  # equal captions stand together
    step = max(len(group) for group in groups.values())  # and a step as long as the longest row of them leads out
    order = [0] * len(circle)
    for here, there in zip(circle, circle[step:] + circle[:step], strict=True):
        order[here] = there
    return order


def _identity(clip: ClipModel) -> str:
    return f"{clip.name} {clip.sha256[:12]}"


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
        rows = [_mean_row(videos.name, subjects.split, name, v) for name, v in columns.items() if v]
        result.rows += [row | {"network": _identity(clip)} if clip and row["metric"] == consistency else row
                        for row in rows]  # fmt: skip
        moving, n = sum(m.moves for m in motions), len(motions)
        low, high = wilson_interval(moving, n)
        result.rows.append(
            {"row": videos.name, "split": subjects.split, "metric": "clips that move", "value": moving / n, "low": low,
             "high": high, "n": n}
        )  # fmt: skip
        cells = [
            with_interval(name, v, digits) if v else "-"
            for (name, v), digits in zip(columns.items(), (2, 4, 5, 3), strict=False)
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
    device = f"{compute.device} ({_device_name(compute.device)})"
    row = {
        "row": "model", "split": f"{size} on {device}", "metric": "generated frames per second",
        "value": median, "low": min(speeds), "high": max(speeds), "n": repeats,
    }  # fmt: skip
    cells = [f"{median:.2f}", f"{min(speeds):.2f} to {max(speeds):.2f}", str(repeats), str(size)]
    cells += [f"{device}, {compute.precision}"]
    cells += [f"{sampling.sampler} {sampling.steps}", f"{sampling.guidance:g}"]
    headers = ["frames/s, median", "slowest to fastest", "videos", "size", "device", "sampler, steps", "guidance"]
    title = "speed of generation: sampling and decoding, one video at a time, after one for warm-up"
    return Measured([row], [(title, headers, [cells])])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _mean_row(row: str, split: str, metric: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    low, high = mean_interval(values, bounds=possible_range(metric))
    return {"row": row, "split": split, "metric": metric, "value": float(np.mean(values)), "low": low, "high": high,
            "n": len(values)}  # fmt: skip


def with_interval(metric: str, values: Sequence[float] | np.ndarray, digits: int, scale: float = 1) -> str:
    """Mean and its 95 % interval, as tables print them; the mean alone where a single value gives none."""
    mean = f"{scale * np.mean(values):.{digits}f}"
    if len(values) == 1:
        return f"{mean} [one value]"
    low, high = (scale * end for end in mean_interval(values, bounds=possible_range(metric)))
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"
