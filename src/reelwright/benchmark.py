"""The moving-shapes benchmark of a model: generated videos and every control row, read by the frozen checker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from reelwright.shapes.files import SCENES_FILE, VIDEOS_FOLDER, read_scenes, read_track
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import Count, Scores, is_right, score
from reelwright.shapes.splits import prompts as draw_prompts
from reelwright.shapes.world import HEADLINE, Prompt, Scene
from reelwright.types import Bundle, UsageError
from reelwright.video.write import read_frames

SPLITS = ("in_distribution", "held_out_pairs", "held_out_triples", "paraphrases")
BATCH = 16
FEWEST_FRAMES = 4  # of a video the checker reads
SHOWN_A_SPLIT = 6  # videos on the contact sheet

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
    asked = _asked(model, num_prompts, tuple(splits) or SPLITS, seed)
    fps = model.recipe.data.fps
    made: dict[str, list[np.ndarray]] = {}
    for split, prompts in asked.items():
        seeds = [derive_seed("evaluate", seed, split, i) for i in range(len(prompts))]
        made[split] = _generate(model.bundle, prompts, seeds, model, sampling, compute, f"generating {split}", progress)
    readings = {split: _read_all(videos, fps, f"checking {split}", progress) for split, videos in made.items()}
    rows = [_row("model", split, prompts, readings[split]) for split, prompts in asked.items()]
    shown = [
        (video, _label(prompt, reading))
        for split, prompts in asked.items()
        for video, prompt, reading in list(zip(made[split], prompts, readings[split], strict=True))[:SHOWN_A_SPLIT]
    ]
    first, prompts = next(iter(asked.items()))
    shuffled = shuffled_captions(prompts, seed)
    rows.append(_row("model, shuffled captions", first, shuffled, readings[first]))
    training = training_scenes(model)
    controls = _control_videos(model, sampling, compute, prompts, made[first], training, seed, progress)
    control_readings = {name: _read_all(videos, fps, f"checking {name}", progress) for name, videos in controls.items()}
    rows += [_row(name, first, prompts, of_control) for name, of_control in control_readings.items()]
    return Benchmark(rows, _memorised(training, readings[first], control_readings["renderer"]), shown)


def read_collection(folder: Path, limit: int, progress: Progress) -> Row:
    """Read a shapes collection's own files: what the checker says of real mp4 files of which all is known."""
    prompts = list(read_scenes(folder).items())[:limit]
    pairs = []
    for number, (name, prompt) in enumerate(prompts, start=1):
        video, fps = read_frames(folder / VIDEOS_FOLDER / name)
        # a clip shows all its factors, whether its caption states them or not
        shown = [obj.factors.only(HEADLINE) for obj in prompt.scene.objects]
        pairs.append((replace(prompt, stated=tuple(shown)), read(video, fps)))
        progress("checking", number, len(prompts))
    return Row("files", "as rendered", score(pairs))


def _asked(model: LoadedModel, num_prompts: int, splits: Sequence[str], seed: int) -> dict[str, list[Prompt]]:
    """The prompts of each split. UsageError where the model or a split's name does not fit the benchmark."""
    unknown = [name for name in splits if name not in SPLITS]
    if unknown:
        raise UsageError(f"--split {unknown[0]}: not a split; known: {', '.join(SPLITS)}")
    data, frames = model.recipe.data, model.recipe.size.frames
    if not is_shapes_collection(data.path):
        raise UsageError(
            f"metric shapes: {data.path} has no {SCENES_FILE}; this model was not trained on moving shapes "
            "(make some with: reelwright shapes OUT)"
        )
    if frames < FEWEST_FRAMES:
        raise UsageError(f"metric shapes: videos of {frames} frames; the checker needs at least {FEWEST_FRAMES}")
    track = read_track(data.path)
    return {
        name: draw_prompts(name, num_prompts, seed, track, duration_seconds=frames / data.fps)  # pyright: ignore[reportArgumentType]
        for name in splits
    }


def _generate(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    model: LoadedModel,
    sampling: SamplingConfig,
    compute: Compute,
    stage: str,
    progress: Progress,
) -> list[np.ndarray]:
    return generate_videos(
        bundle, [prompt.caption for prompt in prompts], seeds, model.recipe.size, sampling, compute, batch_size=BATCH,
        on_step=lambda done, total: progress(stage, done, total),
    )  # fmt: skip


def _read_all(videos: Sequence[np.ndarray], fps: float, stage: str, progress: Progress) -> list[Reading]:
    readings = []
    for number, video in enumerate(videos, start=1):
        readings.append(read(video, fps))
        progress(stage, number, len(videos))
    return readings


def _row(name: str, split: str, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> Row:
    return Row(name, split, score(zip(prompts, readings, strict=True)))


def _control_videos(
    model: LoadedModel,
    sampling: SamplingConfig,
    compute: Compute,
    prompts: list[Prompt],
    videos: list[np.ndarray],
    training: list[Scene],
    seed: int,
    progress: Progress,
) -> dict[str, list[np.ndarray]]:
    """What the model's figure must be held against; the checker is broken where the renderer's row is below 99 %."""
    size, fps = model.recipe.size, model.recipe.data.fps
    rendered = [render(prompt.scene, size, fps) for prompt in prompts]
    nearest = nearest_training_scenes(prompts, training, seed)
    seeds = list(range(len(prompts)))
    untrained = _untrained(model)
    return {
        "renderer": rendered,
        "renderer through codec": through_codec(model.bundle, rendered, compute),
        "untrained model": _generate(
            untrained, prompts, seeds, model, sampling, compute, "generating untrained", progress
        ),
        "nearest training clip": [render(scene, size, fps) for scene in nearest],
        **{f"model, {name}": [spoil(video, seed) for video in videos] for name, spoil in CONTROLS.items()},
    }


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


def _memorised(training: list[Scene], readings: list[Reading], fresh: list[Reading]) -> list[ScoreRow]:
    """Distance to the nearest training clip in state space, beside fresh renders of the same prompts."""
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
