"""The moving-shapes benchmark of a model: generated videos and every control row, read by the frozen checker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from reelwright.benchmark.rows import Row, ScoreRow
from reelwright.bundle import build_bundle
from reelwright.generate import Compute, decode_latents, generate_videos
from reelwright.loading import LoadedModel
from reelwright.metrics.statistics import wilson_interval
from reelwright.models.codec import pixels_to_video
from reelwright.prepare import open_prepared
from reelwright.randomness import derive_seed
from reelwright.recipe import SamplingConfig
from reelwright.shapes.controls import CONTROLS, nearest_training_scenes, shuffled_captions
from reelwright.shapes.files import SCENES_FILE, VIDEOS_FOLDER, read_coverage, read_scenes, read_track
from reelwright.shapes.frozen import checker_hash
from reelwright.shapes.memorisation import memorisation
from reelwright.shapes.renderer import render
from reelwright.shapes.scores import AnyReading, confusions, is_right, match_objects, score, wrong_factors
from reelwright.shapes.splits import prompts as draw_prompts
from reelwright.shapes.tables import splits_of
from reelwright.shapes.tracks import Reader, reader_of
from reelwright.shapes.world import Prompt, Scene, find_track
from reelwright.types import Bundle, Size, UsageError
from reelwright.video.write import read_frames

BATCH = 16
FEWEST_FRAMES = 4  # of a video the checker reads
SHOWN_A_SPLIT = 6  # videos on the contact sheet
WORST = 64  # videos on the sheet of the worst

Progress = Callable[[str, int, int], None]
Confusions = dict[str, dict[tuple[str, str | None], int]]  # by factor: (stated, read) -> how often


@dataclass(frozen=True)
class Shown:
    """A video of the model beside the renderer's of the same prompt, with what was asked and what was read."""

    rendered: np.ndarray
    video: np.ndarray
    label: str


@dataclass(frozen=True)
class Benchmark:
    """Everything one evaluation of a model on moving shapes gave."""

    track: str
    rows: list[Row]
    memorised: list[ScoreRow]
    shown: list[tuple[np.ndarray, str]]  # videos with what was asked and what was read, for a contact sheet
    confusions: dict[str, Confusions]  # of the model: on the first split, and on all others together
    worst: list[Shown]  # over all splits, those with most factors wrong first


def is_shapes_collection(folder: Path) -> bool:
    return (folder / SCENES_FILE).is_file()


def checker_of(data: Path) -> str:
    """The hash of the checker that reads a collection's videos; that of one object where it is none of ours."""
    return checker_hash(read_track(data) if is_shapes_collection(data) else "s1")


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
    track, asked = _asked(model, num_prompts, tuple(splits), seed)
    fps, reader = model.recipe.data.fps, reader_of(track)

    def read_all(videos: Sequence[np.ndarray], name: str) -> list[AnyReading]:
        return _read_all(videos, fps, reader, f"checking {name}", progress)

    made: dict[str, list[np.ndarray]] = {}
    for split, prompts in asked.items():
        seeds = [derive_seed("evaluate", seed, split, i) for i in range(len(prompts))]
        made[split] = _generate(model.bundle, prompts, seeds, model, sampling, compute, f"generating {split}", progress)
    readings = {split: read_all(videos, split) for split, videos in made.items()}
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
    control_readings = {name: read_all(videos, name) for name, videos in controls.items()}
    rows += [_row(name, first, prompts, of_control) for name, of_control in control_readings.items()]
    return Benchmark(
        track=track,
        rows=rows,
        memorised=_memorised(training, readings[first], control_readings["renderer"]),
        shown=shown,
        confusions=_confusions(asked, readings),
        worst=_worst(asked, made, readings, {first: controls["renderer"]}, model.recipe.size, fps),
    )


def read_collection(folder: Path, limit: int, progress: Progress) -> Row:
    """Read a shapes collection's own files: what the checker says of real video files of which all is known."""
    prompts = list(read_scenes(folder).items())[:limit]
    track = read_track(folder)
    reader, headline = reader_of(track), find_track(track).headline
    pairs = []
    for number, (name, prompt) in enumerate(prompts, start=1):
        video, fps = read_frames(folder / VIDEOS_FOLDER / name)
        # a clip shows all its factors, whether its caption states them or not
        shown = tuple(obj.factors.only(headline) for obj in prompt.scene.objects)
        try:
            pairs.append((replace(prompt, stated=shown), reader(video, fps)))
        except ValueError as error:
            raise UsageError(f"{folder / VIDEOS_FOLDER / name}: cannot be checked: {error}") from None
        progress("checking", number, len(prompts))
    return Row("files", "as rendered", score(pairs))


def _asked(
    model: LoadedModel, num_prompts: int, splits: Sequence[str], seed: int
) -> tuple[str, dict[str, list[Prompt]]]:
    """The track, and the prompts of each split. UsageError where the model or a split's name does not fit."""
    data, frames = model.recipe.data, model.recipe.size.frames
    if not is_shapes_collection(data.path):
        raise UsageError(
            f"metric shapes: {data.path} has no {SCENES_FILE}; this model was not trained on moving shapes "
            "(make some with: reelwright shapes OUT)"
        )
    track, coverage = read_track(data.path), read_coverage(data.path)
    known = splits_of(track, coverage)
    unknown = [name for name in splits if name not in known]
    if unknown:
        of_track = f"track {track}" + ("" if coverage is None else f", coverage {coverage:g}")
        raise UsageError(f"--split {unknown[0]}: not a split of {of_track}; known: {', '.join(known)}")
    fewest = max(FEWEST_FRAMES, find_track(track).fewest_frames)
    if frames < fewest:
        raise UsageError(f"metric shapes: videos of {frames} frames; the checker of {track} needs at least {fewest}")
    seconds = frames / data.fps
    chosen = [name for name in splits if name in known] or known
    return track, {
        name: draw_prompts(name, num_prompts, seed, track, duration_seconds=seconds, coverage=coverage)  # pyright: ignore[reportArgumentType]
        for name in chosen
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


def _read_all(
    videos: Sequence[np.ndarray], fps: float, reader: Reader, stage: str, progress: Progress
) -> list[AnyReading]:
    readings = []
    for number, video in enumerate(videos, start=1):
        readings.append(reader(video, fps))
        progress(stage, number, len(videos))
    return readings


def _row(name: str, split: str, prompts: Sequence[Prompt], readings: Sequence[AnyReading]) -> Row:
    return Row(name, split, score(zip(prompts, readings, strict=True)))


def _confusions(asked: dict[str, list[Prompt]], readings: dict[str, list[AnyReading]]) -> dict[str, Confusions]:
    """What was read of each stated value: on the first split, and on the others together."""
    first, *others = asked
    groups = {first: [first], ", ".join(others): others} if others else {first: [first]}
    return {
        name: confusions(pair for split in splits for pair in zip(asked[split], readings[split], strict=True))
        for name, splits in groups.items()
    }


def _worst(
    asked: dict[str, list[Prompt]],
    made: dict[str, list[np.ndarray]],
    readings: dict[str, list[AnyReading]],
    rendered: dict[str, list[np.ndarray]],
    size: Size,
    fps: float,
) -> list[Shown]:
    """The videos with most stated factors wrong, those of equally many in order; none that are right."""
    wrong = [
        (-wrong_factors(prompt, reading), split, i)
        for split, prompts in asked.items()
        for i, (prompt, reading) in enumerate(zip(prompts, readings[split], strict=True))
    ]
    chosen = [(split, i) for count, split, i in sorted(wrong, key=lambda item: item[0]) if count < 0][:WORST]
    return [
        Shown(
            rendered[split][i] if split in rendered else render(asked[split][i].scene, size, fps),
            made[split][i],
            f"{split}: {_label(asked[split][i], readings[split][i])}",
        )
        for split, i in chosen
    ]


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
    rendered = _render_all([prompt.scene for prompt in prompts], size, fps, "rendering", progress)
    nearest = nearest_training_scenes(prompts, training, seed)
    seeds = list(range(len(prompts)))
    untrained = _untrained(model)
    return {
        "renderer": rendered,
        "renderer through codec": through_codec(model.bundle, rendered, compute),
        "untrained model": _generate(
            untrained, prompts, seeds, model, sampling, compute, "generating untrained", progress
        ),
        "nearest training clip": _render_all(nearest, size, fps, "rendering the nearest", progress),
        **{f"model, {name}": [spoil(video, seed) for video in videos] for name, spoil in CONTROLS.items()},
    }


def _render_all(scenes: Sequence[Scene], size: Size, fps: float, stage: str, progress: Progress) -> list[np.ndarray]:
    videos = []
    for number, scene in enumerate(scenes, start=1):
        videos.append(render(scene, size, fps))
        progress(stage, number, len(scenes))
    return videos


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


def _memorised(training: list[Scene], readings: list[AnyReading], fresh: list[AnyReading]) -> list[ScoreRow]:
    """Distance to the nearest training clip in state space, beside fresh renders of the same prompts."""
    readable = sum(reading.valid for reading in readings)
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


def _label(prompt: Prompt, reading: AnyReading) -> str:
    words = [" ".join(one.reading.factors.stated().values()) or "nothing" for one in match_objects(prompt, reading)]
    verdict = "right" if is_right(prompt, reading) else "wrong"
    return f"{prompt.caption}: {verdict}, read {' and '.join(words)}"
