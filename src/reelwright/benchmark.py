"""The moving-shapes benchmark of a model: generated videos and every control row, read by the frozen checker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelwright.bundle import build_bundle
from reelwright.generate import Compute, decode_latents, generate_videos
from reelwright.loading import LoadedModel
from reelwright.metrics.statistics import wilson_interval
from reelwright.models.codec import pixels_to_video
from reelwright.prepare import open_prepared
from reelwright.randomness import derive_seed
from reelwright.recipe import SamplingConfig
from reelwright.shapes.checker import Reading, read
from reelwright.shapes.controls import CONTROLS, nearest_training_scenes, shuffled_captions
from reelwright.shapes.files import SCENES_FILE, read_scenes, read_track
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import Count, Scores, is_right, score
from reelwright.shapes.splits import prompts as draw_prompts
from reelwright.shapes.world import Prompt, Scene
from reelwright.types import Bundle, Size, UsageError

SPLITS = ("in_distribution", "held_out_pairs", "held_out_triples", "paraphrases")
BATCH = 16
FEWEST_FRAMES = 4  # of a video the checker reads

Progress = Callable[[str, int, int], None]
ScoreRow = dict[str, Any]  # {"row", "split", "metric", "value", "low", "high", "n"}


@dataclass(frozen=True)
class Row:
    """One line of the table: who made the videos of which split, and how they were read."""

    name: str
    split: str
    scores: Scores

    def figures(self) -> list[ScoreRow]:
        """The figures as score rows, shares with their Wilson interval."""
        s = self.scores
        shares = {
            "joint accuracy": s.joint,
            "still joint accuracy": s.still,
            "abstained": s.abstained,
            "valid": s.valid,
        }
        shares |= {f"{name} accuracy": count for name, count in s.factors.items()}
        rows = [self._share(metric, count) for metric, count in shares.items() if count.n]
        plain = {
            "binding deficit": s.binding_deficit,
            "direction error (degrees)": s.direction_error_degrees,
            "path residual (pixels)": s.path_residual_pixels,
            **{f"diversity of {name}": value for name, value in s.diversity.items()},
        }
        return rows + [self._row(metric, value, n=s.joint.n) for metric, value in plain.items() if value is not None]

    def cells(self) -> list[str]:
        """The row as the printed table shows it."""
        s = self.scores
        return [
            self.name,
            self.split,
            with_interval(s.joint),
            *(f"{s.factors[name].share:.1%}" if name in s.factors else "-" for name in ("shape", "colour", "motion")),
            f"{s.still.share:.0%} of {s.still.n}" if s.still.n else "-",
            f"{s.abstained.share:.1%}",
            str(s.joint.n),
        ]

    def _share(self, metric: str, count: Count) -> ScoreRow:
        low, high = wilson_interval(count.k, count.n)
        return self._row(metric, count.share, low, high, count.n)

    def _row(
        self, metric: str, value: float, low: float | None = None, high: float | None = None, n: int = 0
    ) -> ScoreRow:
        return {
            "row": self.name, "split": self.split, "metric": metric, "value": value, "low": low, "high": high, "n": n
        }  # fmt: skip


HEADERS = ["row", "split", "joint accuracy", "shape", "colour", "motion", "still apart", "abstained", "n"]


def with_interval(count: Count) -> str:
    if not count.n:
        return "-"
    low, high = wilson_interval(count.k, count.n)
    return f"{count.share:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True)
class Benchmark:
    """Everything one evaluation of a model on moving shapes gave."""

    rows: list[Row]
    memorised: list[ScoreRow]
    shown: list[tuple[np.ndarray, str]]  # videos with what was asked and what was read, for a contact sheet
    frames_per_second: float


def is_shapes_collection(folder: Path) -> bool:
    return (folder / SCENES_FILE).is_file()


def run_benchmark(
    model: LoadedModel,
    sampling: SamplingConfig,
    compute: Compute,
    num_prompts: int,
    splits: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Benchmark:
    """Generate and read `num_prompts` videos a split, and every control row on the first split.

    UsageError for an unknown split, or where the model was not trained on a shapes collection.
    """
    chosen = tuple(splits) or SPLITS
    unknown = [name for name in chosen if name not in SPLITS]
    if unknown:
        raise UsageError(f"--split {unknown[0]}: not a split; known: {', '.join(SPLITS)}")
    recipe, size = model.recipe, model.recipe.size
    if not is_shapes_collection(recipe.data.path):
        raise UsageError(
            f"metric shapes: {recipe.data.path} has no {SCENES_FILE}; this model was not trained on moving shapes "
            "(make some with: reelwright shapes OUT)"
        )
    fps, track = recipe.data.fps, read_track(recipe.data.path)
    if size.frames < FEWEST_FRAMES:
        raise UsageError(f"metric shapes: videos of {size.frames} frames; the checker needs at least {FEWEST_FRAMES}")
    asked = {
        name: draw_prompts(name, num_prompts, seed, track, duration_seconds=size.frames / fps)  # pyright: ignore[reportArgumentType]
        for name in chosen
    }

    def reading(videos: Iterable[np.ndarray], stage: str, total: int) -> list[Reading]:
        results = []
        for number, video in enumerate(videos, start=1):
            results.append(read(video, fps))
            progress(stage, number, total)
        return results

    def row(name: str, split: str, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> Row:
        return Row(name, split, score(zip(prompts, readings, strict=True)))

    rows: list[Row] = []
    shown: list[tuple[np.ndarray, str]] = []
    made: dict[str, list[np.ndarray]] = {}
    read_of: dict[str, list[Reading]] = {}
    started, frames_made = time.perf_counter(), 0
    for split, prompts in asked.items():
        seeds = [derive_seed("evaluate", seed, split, i) for i in range(len(prompts))]
        made[split] = generate_videos(
            model.bundle, [p.caption for p in prompts], seeds, size, sampling, compute, batch_size=BATCH,
            on_step=lambda done, total, split=split: progress(f"generating {split}", done, total),
        )  # fmt: skip
        frames_made += len(prompts) * size.frames
    speed = frames_made / (time.perf_counter() - started)
    for split, prompts in asked.items():
        read_of[split] = reading(made[split], f"checking {split}", len(prompts))
        rows.append(row("model", split, prompts, read_of[split]))
        shown += [(v, _label(p, r)) for v, p, r in list(zip(made[split], prompts, read_of[split], strict=True))[:6]]
    first = chosen[0]
    rows += _control_rows(model, sampling, compute, first, asked[first], made[first], read_of[first], seed, progress)
    memorised = _memorised(model, asked[first], read_of[first], size, fps)
    return Benchmark(rows, memorised, shown, speed)


def _control_rows(
    model: LoadedModel,
    sampling: SamplingConfig,
    compute: Compute,
    split: str,
    prompts: list[Prompt],
    videos: list[np.ndarray],
    readings: list[Reading],
    seed: int,
    progress: Progress,
) -> list[Row]:
    """What the model's figure must be held against; the checker is broken where the renderer's row is below 99 %."""
    size, fps = model.recipe.size, model.recipe.data.fps
    training = training_scenes(model)
    rendered = [render(prompt.scene, size, fps) for prompt in prompts]
    nearest = [render(scene, size, fps) for scene in nearest_training_scenes(prompts, training, seed)]
    untrained = generate_videos(
        _untrained(model), [p.caption for p in prompts], list(range(len(prompts))), size, sampling, compute,
        batch_size=BATCH, on_step=lambda done, total: progress("generating untrained", done, total),
    )  # fmt: skip
    sets: dict[str, Sequence[np.ndarray]] = {
        "renderer": rendered,
        "renderer through codec": through_codec(model.bundle, rendered, compute),
        "untrained model": untrained,
        "nearest training clip": nearest,
        **{f"model, {name}": [spoil(video, seed) for video in videos] for name, spoil in CONTROLS.items()},
    }
    rows = [Row("model, shuffled captions", split, score(zip(shuffled_captions(prompts, seed), readings, strict=True)))]
    for number, (name, made) in enumerate(sets.items(), start=1):
        rows.append(Row(name, split, score((p, read(v, fps)) for p, v in zip(prompts, made, strict=True))))
        progress("checking controls", number, len(sets))
    return rows


def training_scenes(model: LoadedModel) -> list[Scene]:
    """The scenes of the clips the model's recipe trains on, without the held-out ones."""
    trained = {sample.clip for sample in open_prepared(model.recipe).training.samples.values()}
    scenes = [prompt.scene for name, prompt in read_scenes(model.recipe.data.path).items() if name in trained]
    if not scenes:
        raise UsageError(f"{model.recipe.data.path}: none of the clips trained on is in its {SCENES_FILE}")
    return scenes


def _untrained(model: LoadedModel) -> Bundle:
    """The same architecture, codec and tokenizer with fresh random weights."""
    text = model.bundle.text
    codec = model.bundle.codec
    tensors = codec.state_dict() if codec.needs_fit else None
    recipe = model.recipe.model_copy(update={"seed": derive_seed("untrained", model.recipe.seed)})
    fresh = build_bundle(recipe, tensors, text.tokenizer_json() if text.trainable else None)
    return replace(fresh, codec=codec)


def through_codec(bundle: Bundle, videos: Sequence[np.ndarray], compute: Compute) -> list[np.ndarray]:
    """uint8 `f h w c` videos, encoded and decoded: the ceiling of any model on these latents."""
    result: list[np.ndarray] = []
    bundle.codec.to(compute.device)
    for start in range(0, len(videos), BATCH):
        pixels = torch.from_numpy(np.stack(videos[start : start + BATCH]))
        with torch.no_grad():
            latents = bundle.codec.encode(pixels_to_video(pixels).to(compute.device)).mean
        result.extend(decode_latents(bundle, latents, compute))
    return result


def _memorised(
    model: LoadedModel, prompts: list[Prompt], readings: list[Reading], size: Size, fps: float
) -> list[ScoreRow]:
    """Distance to the nearest training clip in state space, beside fresh renders of the same prompts."""
    training = training_scenes(model)
    fresh = [read(render(prompt.scene, size, fps), fps) for prompt in prompts]
    readable = sum(reading.trajectory is not None for reading in readings)
    base = {"row": "model", "split": "memorisation"}
    if not readable:
        return [{**base, "metric": "videos with a readable object", "value": 0.0, "low": None, "high": None,
                 "n": len(readings)}]  # fmt: skip
    result = memorisation(readings, training, fresh)
    closer = result.closer_than_fresh
    closer_low, closer_high = wilson_interval(closer.k, closer.n)
    return [
        {**base, "metric": "median distance to the nearest training clip", "value": result.median, "low": None,
         "high": None, "n": readable},
        {**base, "row": "renderer", "metric": "median distance to the nearest training clip",
         "value": result.fresh_median, "low": None, "high": None, "n": len(fresh)},
        {**base, "metric": "nearer than 95 % of fresh renders", "value": closer.share, "low": closer_low,
         "high": closer_high, "n": closer.n},
    ]  # fmt: skip


def _label(prompt: Prompt, reading: Reading) -> str:
    read_factors = " ".join(reading.factors.stated().values()) or "nothing"
    verdict = "right" if is_right(prompt, reading) else "wrong"
    return f"{prompt.caption}: {verdict}, read {read_factors}"
