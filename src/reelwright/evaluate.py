"""Videos -> numbers, always with their intervals and the rows they must be held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reelwright.benchmark import HEADERS, Row, ScoreRow, is_shapes_collection, run_benchmark
from reelwright.bundle import DenoisingLoss
from reelwright.data.cache import Cache
from reelwright.data.decode import read_window
from reelwright.data.inspection import inspect
from reelwright.generate import Compute, generate_videos
from reelwright.heldout import held_out_loss
from reelwright.loading import LoadedModel, load_model
from reelwright.metrics.frames import mse, psnr
from reelwright.metrics.statistics import mean_interval, wilson_interval
from reelwright.prepare import open_prepared
from reelwright.recipe import SamplingConfig
from reelwright.report.run_page import write_run_page
from reelwright.run import RunDirectory, finite
from reelwright.shapes.checker import read
from reelwright.shapes.files import read_scenes
from reelwright.shapes.frozen import checker_hash
from reelwright.shapes.scores import score
from reelwright.training.devices import autocast
from reelwright.types import UsageError
from reelwright.video.sheet import contact_sheet, grid_sheet
from reelwright.video.write import read_frames

METRICS = ("shapes", "memorisation", "nearest", "heldout")
Progress = Callable[[str, int, int], None]
Table = tuple[str, list[str], list[list[str]]]  # title, headers, rows


@dataclass(frozen=True)
class Settings:
    """What to measure. `sampling` overrides the run's where a value is not None."""

    metrics: tuple[str, ...] = ("auto",)
    prompts: int = 256
    splits: tuple[str, ...] = ()
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What was measured, as score rows, printable tables, and notes on the conditions and files."""

    rows: list[ScoreRow] = field(default_factory=list)
    printed: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        return self.printed

    def to_json(self) -> dict[str, Any]:
        return finite({"about": self.about, "scores": self.rows, "notes": self.notes})


def run_evaluate(
    target: str,
    settings: Settings,
    compute: Compute,
    checkpoint: str | None = None,
    raw: bool = False,
    progress: Progress = lambda *_: None,
) -> Result:
    """Measure a model (scores go into its run directory as well) or a folder of rendered shapes.

    UsageError for an unknown metric, or one that does not fit what the model was trained on.
    """
    if not settings.metrics:
        raise UsageError(f"--metrics: none is given; known: auto, {', '.join(METRICS)}")
    unknown = [name for name in settings.metrics if name not in (*METRICS, "auto")]
    if unknown:
        raise UsageError(f"--metrics {unknown[0]}: not a metric; known: auto, {', '.join(METRICS)}")
    if is_shapes_collection(Path(target)):
        if other := set(settings.metrics) - {"auto", "shapes"}:
            raise UsageError(f"metric {other.pop()}: needs a model; {target} is a folder of rendered shapes")
        return _evaluate_folder(Path(target), settings, progress)
    model = load_model(target, checkpoint, raw)
    overrides = {name: value for name, value in settings.sampling.items() if value is not None}
    sampling = SamplingConfig.parse(model.recipe.sampling.plain() | overrides, origin="evaluate")
    metrics = settings.metrics
    if "auto" in metrics:
        shapes = is_shapes_collection(model.recipe.data.path)
        metrics = ("shapes", "memorisation", "heldout") if shapes else ("nearest", "heldout")
    result = Result(notes=list(model.warnings), about=_conditions(model, sampling, compute, settings))
    started = time.perf_counter()
    if {"shapes", "memorisation"} & set(metrics):
        _measure_shapes(model, sampling, compute, settings, set(metrics), result, progress)
    if "nearest" in metrics:
        _measure_nearest(model, sampling, compute, settings, result, progress)
    if "heldout" in metrics:
        _measure_held_out(model, compute, result)
    result.about["minutes"] = round((time.perf_counter() - started) / 60, 2)
    result.notes.append(conditions_line(result.about))
    run = _run_of(model)
    if run is not None:
        run.write_scores(_with_earlier(run, result), conditions_line(result.about))
        write_run_page(run)
        result.notes.append(f"scores: {run.scores_path}; report: {run.report_path}")
    return result


def _with_earlier(run: RunDirectory, result: Result) -> list[ScoreRow]:
    """The new rows, and those of other metrics measured before on the same weights."""
    sha256 = result.about["model_sha256"][:12]
    new = [{**row, "model_sha256": sha256} for row in result.rows]
    measured = {row["metric"] for row in new}
    earlier = [r for r in run.read_scores()[0] if r.get("model_sha256") == sha256 and r["metric"] not in measured]
    return new + earlier


def _conditions(model: LoadedModel, sampling: SamplingConfig, compute: Compute, settings: Settings) -> dict[str, Any]:
    """What every table prints: machine, size of the model, what it saw, how it was sampled."""
    train = model.recipe.train
    parameters = sum(p.numel() for p in DenoisingLoss(model.bundle).parameters())
    return {
        "model": model.origin,
        "model_sha256": model.weights_sha256,
        "device": str(compute.device),
        "precision": compute.precision,
        "parameters": parameters,
        "steps_trained": model.step,
        "minutes_trained": round(model.seconds / 60, 1),
        "clips_seen": (model.step or 0) * train.batch_size,
        "sampler": sampling.sampler,
        "sampler_steps": sampling.steps,
        "guidance": sampling.guidance,
        "prompts": settings.prompts,
        "seed": settings.seed,
        "checker_sha256": checker_hash(),
    }


def conditions_line(about: dict[str, Any]) -> str:
    return (
        f"measured on {about['device']} in {about['precision']}: {about['parameters']:,} parameters, "
        f"{about['steps_trained']} steps, {about['clips_seen']:,} clips seen; {about['sampler']} "
        f"{about['sampler_steps']} steps, guidance {about['guidance']:g}, seed {about['seed']}; trained for "
        f"{about['minutes_trained']:.1f} minutes, measured for {about['minutes']:.1f}; "
        f"checker {about['checker_sha256'][:8]}"
    )


def _measure_shapes(
    model: LoadedModel,
    sampling: SamplingConfig,
    compute: Compute,
    settings: Settings,
    metrics: set[str],
    result: Result,
    progress: Progress,
) -> None:
    benchmark = run_benchmark(model, sampling, compute, settings.prompts, settings.splits, settings.seed, progress)
    if "shapes" in metrics:
        result.rows += [figure for row in benchmark.rows for figure in row.figures()]
        result.printed.append(("moving shapes", HEADERS, [row.cells() for row in benchmark.rows]))
        speed = {"row": "model", "metric": "generation (frames/s)", "value": round(benchmark.frames_per_second, 2)}
        result.rows.append(speed)
        result.notes.append(f"generation: {benchmark.frames_per_second:.1f} frames/s")
    if "memorisation" in metrics:
        result.rows += benchmark.memorised
        rows = [[r["row"], r["metric"], f"{r['value']:.3f}", str(r["n"])] for r in benchmark.memorised]
        result.printed.append(("memorisation", ["row", "metric", "value", "n"], rows))
    run = _run_of(model)
    if run is not None:
        sheet = run.evaluation_sheet
        contact_sheet([video for video, _ in benchmark.shown], [label for _, label in benchmark.shown], sheet)
        result.notes.append(f"contact sheet: {sheet}")


def _measure_nearest(
    model: LoadedModel,
    sampling: SamplingConfig,
    compute: Compute,
    settings: Settings,
    result: Result,
    progress: Progress,
) -> None:
    """Does each caption bring back its own clip? Nearest by pixel MSE among the training clips, and PSNR to its own."""
    recipe = model.recipe
    inspection = inspect(recipe.data, Cache(recipe.cache_dir))
    trained = {sample.clip for sample in open_prepared(recipe).training.samples.values()}
    samples = [s for s in inspection.samples if s.window == 0 and s.size == recipe.size and s.clip.id in trained]
    samples = samples[: settings.prompts]
    if len(samples) < 2:
        raise UsageError("metric nearest: needs at least two training clips of the recipe's size")
    clips = [read_window(s.clip.video, s.size, recipe.data.fps, s.start_seconds, inspection.info(s)) for s in samples]
    captions = [s.clip.captions[0] for s in samples]
    videos = generate_videos(
        model.bundle, captions, [settings.seed] * len(samples), recipe.size, sampling, compute,
        on_step=lambda done, total: progress("generating", done, total),
    )  # fmt: skip
    errors = np.array([[mse(video, clip) for clip in clips] for video in videos])  # videos clips
    hits = errors.argmin(axis=1) == np.arange(len(clips))
    decibels = [psnr(video, clip) for video, clip in zip(videos, clips, strict=True)]
    low, high = wilson_interval(int(hits.sum()), len(hits))
    psnr_low, psnr_high = mean_interval(decibels)
    result.rows += [
        {"row": "model", "split": "train", "metric": "own clip is nearest", "value": float(hits.mean()), "low": low,
         "high": high, "n": len(hits)},
        {"row": "chance", "split": "train", "metric": "own clip is nearest", "value": 1 / len(hits), "low": None,
         "high": None, "n": len(hits)},
        {"row": "model", "split": "train", "metric": "PSNR to own clip (dB)", "value": float(np.mean(decibels)),
         "low": psnr_low, "high": psnr_high, "n": len(hits)},
    ]  # fmt: skip
    rows = [
        [s.clip.id, f"{value:.2f}", "yes" if hit else f"no: {samples[int(errors[i].argmin())].clip.id}"]
        for i, (s, value, hit) in enumerate(zip(samples, decibels, hits, strict=True))
    ]
    title = f"nearest clip: {hits.sum()} of {len(hits)} their own, mean PSNR {np.mean(decibels):.2f} dB"
    result.printed.append((title, ["clip", "PSNR dB", "nearest is its own"], rows))
    run = _run_of(model)
    if run is not None:
        labels = [f"{caption} ({value:.1f} dB)" for caption, value in zip(captions, decibels, strict=True)]
        grid_sheet(clips, videos, labels, run.evaluation_sheet)
        result.notes.append(f"contact sheet, original above generated: {run.evaluation_sheet}")


def _measure_held_out(model: LoadedModel, compute: Compute, result: Result) -> None:
    recipe = model.recipe
    prepared = open_prepared(recipe)
    manifest = prepared.manifest
    fits = {"codec": manifest.codec_fingerprint, "text": manifest.text_fingerprint}
    for part, fingerprint in fits.items():
        if getattr(model.bundle, part).fingerprint() != fingerprint:
            raise UsageError(
                f"metric heldout: the {part} in {recipe.cache_dir} is not the one {model.origin} was trained with "
                "(fitted anew since?); its loss on that cache would mean nothing"
            )
    dataset = prepared.validation if len(prepared.validation) else prepared.training
    module = DenoisingLoss(model.bundle).to(compute.device)
    train = recipe.train
    with autocast(compute.device, compute.precision):
        figures = held_out_loss(
            module, dataset, compute.device, train.evaluate_samples, train.evaluate_times, train.batch_size
        )
    row = {
        "row": "model", "split": figures["heldout_split"], "metric": "held-out loss",
        "value": figures["heldout_loss"], "low": figures["heldout_low"], "high": figures["heldout_high"],
        "n": figures["heldout_clips"],
    }  # fmt: skip
    if row["split"] == "train":
        row["metric"] = "fixed-noise loss on training clips (none is held out)"
    result.rows.append(row)
    cells = [row["metric"], f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]", str(row["n"])]
    result.printed.append(("loss at fixed noise and timestep quantiles", ["metric", "value", "clips"], [cells]))


def _evaluate_folder(folder: Path, settings: Settings, progress: Progress) -> Result:
    """Read a shapes collection's own files: what the checker says of real mp4 files of which all is known."""
    prompts = list(read_scenes(folder).items())[: settings.prompts]
    pairs = []
    for number, (name, prompt) in enumerate(prompts, start=1):
        video, fps = read_frames(folder / "videos" / name)
        # a clip shows all its factors, whether its caption states them or not
        shown = [obj.factors.only(("shape", "colour", "motion")) for obj in prompt.scene.objects]
        pairs.append((replace(prompt, stated=tuple(shown)), read(video, fps)))
        progress("checking", number, len(prompts))
    row = Row("files", "as rendered", score(pairs))
    return Result(
        rows=row.figures(), printed=[(f"moving shapes in {folder}", HEADERS, [row.cells()])],
        about={"folder": str(folder), "checker_sha256": checker_hash()},
    )  # fmt: skip


def _run_of(model: LoadedModel) -> RunDirectory | None:
    """The run directory a checkpoint belongs to; None for random weights and single checkpoints."""
    path = Path(model.origin)
    if model.step is None or path.parent.name != "checkpoints":
        return None
    return RunDirectory.open(path.parent.parent)
