"""Can the benchmark's ruler be trusted? The checker of every track, on clips of which all is known.

    python benchmarks/checker.py [--tracks s1 s2 ...] [--clips 1024] [--spoilt 256] [--json FILE] [--plot FILE.svg]

Every track's own renders, spread over its splits, must be read right in at least 99 % of the cases, every stated factor
of every object; of these the share that could not be read is printed too. A smaller number is blurred, covered with
noise, written as mp4 and read back, and spoilt by every negative control: frozen, reversed, frame-shuffled, blank,
noise, and captions shuffled among the videos. A reversed turn is a turn and a reversed bounce a bounce, so that
reversing leaves some clips right. Exit code 1 where a track is below 99 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reelwright.benchmark import with_interval
from reelwright.console import Progress, print_table
from reelwright.metrics.statistics import wilson_interval
from reelwright.shapes.controls import CONTROLS, shuffled_captions
from reelwright.shapes.frozen import checker_hash
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import AnyReading, Count, Scores, score
from reelwright.shapes.splits import prompts
from reelwright.shapes.tables import splits_of
from reelwright.shapes.tracks import reader_of
from reelwright.shapes.world import TRACKS, Prompt
from reelwright.types import Size
from reelwright.video.write import read_frames, write_video

SIZE, FPS = Size(16, 64, 64), 8.0
SEED = 2026  # no other scene of the project is drawn from it
LEAST = 0.99
BLURS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # pixels, standard deviation
NOISES = (4.0, 8.0, 16.0, 24.0, 32.0)  # grey levels, standard deviation
CODEC = "mp4 and back"

Change = Callable[[np.ndarray, int], np.ndarray]  # a video and its number


def blurred(video: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of every frame; beyond the edge the last pixel goes on."""
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    values = video.astype(np.float64)
    for axis in (1, 2):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(values, padding, mode="edge")
        length = values.shape[axis]
        shifted = [w * np.take(padded, range(k, k + length), axis=axis) for k, w in enumerate(kernel)]
        values = np.sum(shifted, axis=0)
    return np.rint(values).astype(np.uint8)


def noisy(video: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0.0, sigma, video.shape)
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def through_mp4(video: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, video, FPS)
        return read_frames(path)[0]


def changes() -> dict[str, Change]:
    """Every way a clip is spoilt, by the name of its row."""
    found: dict[str, Change] = {f"blur {s:g}": lambda video, i, s=s: blurred(video, s) for s in BLURS}
    found |= {f"noise {s:g}": lambda video, i, s=s: noisy(video, s, i) for s in NOISES}
    return found | {CODEC: lambda video, i: through_mp4(video)} | CONTROLS


def drawn_prompts(track: str, clips: int) -> list[Prompt]:
    """As many prompts of every split, one after the other."""
    splits = splits_of(track)
    each = -(-clips // len(splits))
    by_split = [prompts(split, each, SEED, track) for split in splits]
    return [prompt for group in zip(*by_split, strict=True) for prompt in group][:clips]


def validate(track: str, clips: int, spoilt: int, progress: Progress) -> dict[str, Any]:
    """The scores of a track's clips as they are, and of the first `spoilt` of them under every change."""
    asked, reader = drawn_prompts(track, clips), reader_of(track)

    def read_all(name: str, videos: Sequence[np.ndarray], change: Change | None) -> list[AnyReading]:
        readings = []
        for i, video in enumerate(videos):
            readings.append(reader(video if change is None else change(video, i), FPS))
            progress(f"{track}, {name}", i + 1, len(videos))
        return readings

    videos = [render(prompt.scene, SIZE, FPS) for prompt in asked]
    started = time.process_time()
    readings = read_all("renderer", videos, None)
    seconds = time.process_time() - started
    rows = {"renderer": score(zip(asked, readings, strict=True))}
    few = asked[:spoilt]
    shuffled = shuffled_captions(few, SEED)
    rows["shuffled captions"] = score(zip(shuffled, readings[:spoilt], strict=True))
    for name, change in changes().items():
        rows[name] = score(zip(few, read_all(name, videos[:spoilt], change), strict=True))
    return {
        "track": track,
        "checker": checker_hash(track),
        "milliseconds": 1000 * seconds / len(asked),
        "rows": {name: figures(scores) for name, scores in rows.items()},
        "scores": rows,
    }


def figures(scores: Scores) -> dict[str, Any]:
    """A row as JSON: every share with its interval."""
    every = whole(scores)
    counts = {"joint": every, "moving": scores.joint, "still": scores.still, "abstained": scores.abstained}
    counts |= {"swapped": scores.swapped} if scores.swapped is not None else {}
    counts |= scores.factors
    shares = {
        name: {"value": count.share, "interval": wilson_interval(count.k, count.n), "n": count.n}
        for name, count in counts.items()
        if count.n
    }
    return {**shares, "reasons": scores.reasons, "direction error (degrees)": scores.direction_error_degrees}


def whole(scores: Scores) -> Count:
    """The joint accuracy of all prompts, the still ones among them."""
    return Count(scores.joint.k + scores.still.k, scores.joint.n + scores.still.n)


def draw(validated: Sequence[dict[str, Any]], path: Path) -> None:
    """Joint accuracy against blur and noise, a line a track; the suffix of `path` picks the format."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, levels, unit in zip(
        panels, ("blur", "noise"), (BLURS, NOISES), ("pixels of 64", "grey levels of 255"), strict=True
    ):
        for one in validated:
            shares = [whole(one["scores"][f"{kind} {level:g}"]).share for level in levels]
            first = whole(one["scores"]["renderer"]).share
            axes.plot((0, *levels), (first, *shares), marker="o", markersize=4, label=one["track"])
        axes.axhline(LEAST, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"{kind}, standard deviation in {unit}")
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("clips read right in every factor")
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def print_tables(validated: Sequence[dict[str, Any]]) -> None:
    rows = [
        [one["track"], with_interval(whole(scores)), f"{scores.abstained.share:.2%}", str(whole(scores).n),
         ", ".join(f"{name} {count.share:.1%}" for name, count in scores.factors.items()),
         f"{one['milliseconds']:.0f}", one["checker"][:8]]
        for one in validated for scores in [one["scores"]["renderer"]]
    ]  # fmt: skip
    headers = ["track", "joint accuracy", "abstained", "n", "by factor", "ms of CPU a clip", "checker"]
    print_table(headers, rows, "The renderer's clips")
    names = [one["track"] for one in validated]
    for title, kinds in {
        "Spoilt a little: joint accuracy (abstained)": [k for k in changes() if k not in CONTROLS],
        "Negative controls: joint accuracy (abstained), still prompts apart": ["shuffled captions", *CONTROLS],
    }.items():
        cells = [[kind, *(_cell(one["scores"][kind], title.startswith("N")) for one in validated)] for kind in kinds]
        print()
        print_table(["", *names], cells, title)


def _cell(scores: Scores, apart: bool) -> str:
    if not apart:
        return f"{whole(scores).share:.1%} ({scores.abstained.share:.1%})"
    still = f", still {scores.still.k} of {scores.still.n}" if scores.still.n else ""
    return f"{scores.joint.share:.1%} ({scores.abstained.share:.0%}){still}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", nargs="+", choices=list(TRACKS), default=list(TRACKS))
    parser.add_argument("--clips", type=int, default=1024, help="of a track, as rendered")
    parser.add_argument("--spoilt", type=int, default=256, help="of a track, under every change; at least 2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    with Progress() as progress:
        validated = [validate(track, arguments.clips, arguments.spoilt, progress) for track in arguments.tracks]
    minutes = (time.perf_counter() - started) / 60
    print_tables(validated)
    machine = f"CPU ({platform.machine()}, {os.cpu_count()} processors)"
    print(f"\nmeasured on {machine} in {minutes:.1f} minutes, seed {SEED}, {SIZE} at {FPS:g} fps; no model, no sampler")
    if arguments.json:
        content = [{key: value for key, value in one.items() if key != "scores"} for one in validated]
        arguments.json.write_text(json.dumps({"minutes": minutes, "seed": SEED, "tracks": content}, indent=1))
    if arguments.plot:
        draw(validated, arguments.plot)
    if broken := [one["track"] for one in validated if whole(one["scores"]["renderer"]).share < LEAST]:
        print(f"the checker of {', '.join(broken)} is broken: below {LEAST:.0%} on its own renders", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
