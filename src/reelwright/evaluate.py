"""Videos -> numbers, always with their intervals and the rows they must be held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from reelwright import quality
from reelwright.benchmark import (
    Benchmark,
    ScoreRow,
    checker_of,
    is_shapes_collection,
    read_collection,
    run_benchmark,
    tabulate,
    write_benchmark_page,
)
from reelwright.bundle import DenoisingLoss
from reelwright.generate import Compute
from reelwright.heldout import held_out_loss
from reelwright.loading import LoadedModel, load_model
from reelwright.metrics.clip import ClipModel
from reelwright.metrics.features import FeatureNetwork
from reelwright.prepare import open_prepared
from reelwright.quality import Measured, Progress, Subjects
from reelwright.recipe import SamplingConfig
from reelwright.report.run_page import write_run_page
from reelwright.run import RunDirectory, finite
from reelwright.training.checkpoint import MANIFEST
from reelwright.training.devices import autocast
from reelwright.types import UsageError
from reelwright.video.sheet import contact_sheet, grid_sheet

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
MODEL_FILES = ("recipe.yaml", MANIFEST, "model_index.json")  # a folder with one of these is a model, not videos
SHOWN = 8  # videos on a contact sheet


@dataclass(frozen=True)
class Settings:
    """What to measure. `sampling` overrides the run's where a value is not None."""

    metrics: tuple[str, ...] = ("auto",)
    prompts: int = 256
    splits: tuple[str, ...] = ()
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    clip: str | None = None  # a CLIP's directory or hub id
    features: str | None = None  # the network of the Frechet distance, as `quality.build_features` takes it
    real: Path | None = None  # a folder of real captioned clips, to hold a folder of videos against
    places: tuple[str, ...] = ()  # 'cache_dir=...' and the like, over the recipe's of a model that was moved

    def given(self) -> list[str]:
        """The options that were set, as the command line names them."""
        named = {"split": self.splits, **self.sampling, "clip": self.clip, "features": self.features, "real": self.real}
        return [f"--{name}" for name, value in named.items() if value not in (None, ())]


@dataclass
class Result(Measured):
    """What was measured, and the conditions."""

    about: dict[str, Any] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        self.rows += measured.rows
        self.tables += measured.tables
        self.notes += measured.notes
        self.per_video |= measured.per_video

    def to_json(self) -> dict[str, Any]:
        return finite({"about": self.about, "scores": self.rows, "videos": self.per_video, "notes": self.notes})


@dataclass
class Subject:
    """What is measured, a model or a folder; what several metrics need is made once, when the first asks for it."""

    target: str
    loaded: LoadedModel | None  # None: a folder of videos
    metrics: tuple[str, ...]
    settings: Settings
    sampling: SamplingConfig
    compute: Compute
    progress: Progress

    @property
    def model(self) -> LoadedModel:
        assert self.loaded is not None, "a metric that needs one was let through"
        return self.loaded

    @cached_property
    def benchmark(self) -> Benchmark:
        s = self.settings
        return run_benchmark(self.model, self.sampling, self.compute, s.prompts, s.splits, s.seed, self.progress)

    @cached_property
    def checker(self) -> str:
        """The hash of the checker that reads videos of this kind."""
        return checker_of(Path(self.target) if self.loaded is None else self.loaded.recipe.data.path)

    @cached_property
    def videos(self) -> Subjects:
        s = self.settings
        if self.loaded is None:
            return quality.folder_subjects(Path(self.target), s.real, s.prompts, s.seed, self.progress)
        return quality.model_subjects(self.loaded, self.sampling, self.compute, s.prompts, s.seed, self.progress)

    @cached_property
    def clip(self) -> ClipModel | None:
        """The CLIP that was named, or the usual one where its score is asked for."""
        source = self.settings.clip or (DEFAULT_CLIP if "clip" in self.metrics else None)
        return None if source is None else quality.load_clip(source, self.compute.device)

    @cached_property
    def network(self) -> FeatureNetwork | None:
        source = self.settings.features
        return None if source is None else quality.build_features(source, self.compute.device)

    @cached_property
    def run(self) -> RunDirectory | None:
        """The run directory a checkpoint belongs to; None for random weights, single checkpoints and folders."""
        if self.loaded is None or self.loaded.step is None:
            return None
        path = Path(self.loaded.origin)
        return RunDirectory.open(path.parent.parent) if path.parent.name == "checkpoints" else None


def run_evaluate(
    target: str,
    settings: Settings,
    compute: Compute,
    checkpoint: str | None = None,
    raw: bool = False,
    progress: Progress = lambda *_: None,
) -> Result:
    """Measure a model (scores go into its run directory as well) or a folder of captioned videos.

    UsageError for an unknown metric, one that does not fit what is measured, or an option that would have no effect.
    """
    if not settings.metrics:
        raise UsageError(f"--metrics: none is given; known: auto, {', '.join(METRICS)}")
    unknown = [name for name in settings.metrics if name not in (*METRICS, "auto")]
    if unknown:
        raise UsageError(f"--metrics {unknown[0]}: not a metric; known: auto, {', '.join(METRICS)}")
    path = Path(target)
    is_folder = path.is_dir() and not any((path / name).is_file() for name in MODEL_FILES)
    if is_folder and (checkpoint is not None or raw):
        option = "--raw" if checkpoint is None else f"--checkpoint {checkpoint}"
        raise UsageError(f"{option}: {target} is a folder of videos, not a model; leave it out")
    if is_folder and settings.places:
        raise UsageError(f"{settings.places[0]}: {target} is a folder of videos, which has no recipe; leave it out")
    model = None if is_folder else quality.placed(load_model(target, checkpoint, raw), settings.places)
    data = path if model is None else model.recipe.data.path
    if model is not None:
        quality.check_places(model, {METRICS[name].needs if name in METRICS else "clips" for name in settings.metrics})
    metrics = _chosen(settings, data, is_folder, target)
    overrides = {name: value for name, value in settings.sampling.items() if value is not None}
    own = SamplingConfig() if model is None else model.recipe.sampling
    sampling = SamplingConfig.parse(own.plain() | overrides, origin="evaluate")
    subject = Subject(target, model, metrics, settings, sampling, compute, progress)
    # This loads every network: what cannot be loaded is told before anything is generated.
    result = Result(notes=[] if model is None else list(model.warnings), about=_about(subject))
    started = time.perf_counter()
    for name, metric in METRICS.items():
        if name in metrics:
            measured, conditions = metric.measure(subject), _conditions(subject, metric)
            measured.rows = [{**row, **conditions} for row in measured.rows]
            result.add(measured)
    if "videos" in subject.__dict__:  # they were needed
        _describe_videos(subject, result)
    result.about["minutes"] = round((time.perf_counter() - started) / 60, 2)
    result.notes.append(conditions_line(result.about))
    if subject.run is not None:
        if "shapes" in metrics:
            page = write_benchmark_page(subject.run, subject.benchmark, conditions_line(result.about))
            result.notes.append(f"what was taken for what, and the worst videos: {page}")
        subject.run.write_scores(_with_earlier(subject.run, result), _model_facts(result.about))
        write_run_page(subject.run)
        result.notes.append(f"scores: {subject.run.scores_path}; report: {subject.run.report_path}")
    return result


def _chosen(settings: Settings, data: Path, is_folder: bool, target: str) -> tuple[str, ...]:
    """The metrics asked for. UsageError where one does not fit, or an option has no effect on any of them."""
    metrics, shapes = settings.metrics, is_shapes_collection(data)
    if "auto" in metrics:
        auto = ("shapes", "memorisation", "heldout", "speed") if shapes else ("nearest", "heldout", "speed")
        if is_folder:
            auto = ("shapes",) if shapes else ("temporal",)
        metrics = (*auto, *(name for name in metrics if name != "auto"))
    for name in metrics:
        if is_folder and METRICS[name].needs_model:
            raise UsageError(f"metric {name}: needs a model; {target} is a folder of videos")
        if is_folder and name == "shapes" and not shapes:
            raise UsageError(f"metric shapes: {target} has no scenes.json, so it is no shapes collection")
    for option in settings.given():
        if (option == "--real" and not is_folder) or (is_folder and option in MODEL_OPTIONS):
            kind = "a folder of videos" if is_folder else "a model, whose real clips are those of its recipe"
            raise UsageError(f"{option}: has no effect, {target} is {kind}; leave it out")
        if not any(option in METRICS[name].options for name in metrics):
            fitting = [name for name, metric in METRICS.items() if option in metric.options]
            raise UsageError(
                f"{option}: has no effect on --metrics {','.join(metrics)}; it is for {', '.join(fitting)}"
            )
    if "fvd" in metrics:
        if settings.features is None:
            raise UsageError("metric fvd: name its feature network: --features i3d:PATH, clip:MODEL or videomae:MODEL")
        if is_folder and settings.real is None:
            raise UsageError(f"metric fvd: {target} is a folder of videos; name the real ones: --real FOLDER")
    if "temporal" in metrics:  # never without the dynamic degree, which its table holds
        metrics = tuple(name for name in metrics if name != "dynamic")
    return metrics


def _describe_videos(subject: Subject, result: Result) -> None:
    """What the shared set of videos was, and a look at it where no other metric shows one."""
    videos = subject.videos
    counts = ", ".join(f"{one.name} {len(one.videos)}" for one in videos.sets)
    result.notes.append(f"measured of each: {counts}; {videos.size} at {videos.fps:g} fps; {videos.split}")
    result.notes += videos.notes
    if videos.real is None:
        result.notes.append("no row of real clips: name a folder of them with --real FOLDER")
    if subject.run is not None and videos.real is not None and not {"shapes", "nearest"} & set(subject.metrics):
        sheet = subject.run.evaluation_sheet
        real, made, captions = videos.real.videos[:SHOWN], videos.made.videos[:SHOWN], videos.made.captions[:SHOWN]
        grid_sheet(real, made, captions, sheet, names=("real", "generated"))
        result.notes.append(f"contact sheet, real above generated: {sheet}")


def _with_earlier(run: RunDirectory, result: Result) -> list[ScoreRow]:
    """The new rows, and those of other metrics measured before on the same weights."""
    earlier, model = run.read_scores()
    if model.get("sha256") != result.about["model_sha256"]:
        return result.rows
    measured = {(row["metric"], row.get("split")) for row in result.rows}
    return result.rows + [row for row in earlier if (row["metric"], row.get("split")) not in measured]


def _model_facts(about: dict[str, Any]) -> dict[str, Any]:
    known = ("parameters", "steps_trained", "minutes_trained", "clips_seen")
    return {"sha256": about["model_sha256"], **{name: about[name] for name in known}}


def _sampled(sampling: SamplingConfig) -> dict[str, Any]:
    """What of the sampling has an effect."""
    unused = {"noise_levels"} if sampling.spacing != "karras" else set()
    if sampling.window_frames in ("auto", 0):  # videos are as long as those it was trained on
        unused |= {"window_frames", "window_overlap", "window_noise"}
    return {name: value for name, value in sampling.plain().items() if name not in unused}


def _conditions(subject: Subject, metric: Metric) -> dict[str, Any]:
    """What a row of this metric depends on besides the weights: rows of equal conditions may be compared."""
    settings, compute = subject.settings, subject.compute
    found: dict[str, Any] = {"device": str(compute.device)}
    if subject.loaded is not None:
        found["precision"] = compute.precision
        found |= _sampled(subject.sampling) if set(SAMPLING) <= set(metric.options) else {}
    if metric.is_drawn:
        found |= {"seed": settings.seed, "prompts": settings.prompts}
    if metric.is_checked:
        found["checker"] = subject.checker[:12]
    return found


def _about(subject: Subject) -> dict[str, Any]:
    """What every table prints: machine, size of the model, what it saw, how it was sampled."""
    compute, model, sampling = subject.compute, subject.loaded, subject.sampling
    about: dict[str, Any] = {"device": str(compute.device), "checker_sha256": subject.checker}
    about |= {"metrics": list(subject.metrics), "prompts": subject.settings.prompts, "seed": subject.settings.seed}
    about["networks"] = [f"{one.name} {one.sha256[:12]}" for one in (subject.clip, subject.network) if one]
    if model is None:
        return {"folder": subject.target, **about}
    return {
        "model": model.origin,
        "model_sha256": model.weights_sha256,
        **about,
        "precision": compute.precision,
        "parameters": sum(p.numel() for p in DenoisingLoss(model.bundle).parameters()),
        "steps_trained": model.step,
        "minutes_trained": round(model.seconds / 60, 1),
        "clips_seen": (model.step or 0) * model.recipe.train.batch_size,
        "sampler": sampling.sampler,
        "sampler_steps": sampling.steps,
        "guidance": sampling.guidance,
    }


def conditions_line(about: dict[str, Any]) -> str:
    end = f"measured for {about['minutes']:.1f} minutes; checker {about['checker_sha256'][:8]}"
    end += f"; {', '.join(about['networks'])}" if about["networks"] else ""
    if "model" not in about:
        return f"{about['folder']} measured on {about['device']}, seed {about['seed']}; {end}"
    return (
        f"measured on {about['device']} in {about['precision']}: {about['parameters']:,} parameters, "
        f"{about['steps_trained']} steps, {about['clips_seen']:,} clips seen; {about['sampler']} "
        f"{about['sampler_steps']} steps, guidance {about['guidance']:g}, seed {about['seed']}; trained for "
        f"{about['minutes_trained']:.1f} minutes, {end}"
    )


def _shapes(subject: Subject) -> Measured:
    """The moving-shapes benchmark of a model; of a rendered folder, what the checker says of its own files."""
    if subject.loaded is None:
        row = read_collection(Path(subject.target), subject.settings.prompts, subject.progress)
        return Measured(row.figures(), [(f"moving shapes in {subject.target}", *tabulate([row]))])
    benchmark = subject.benchmark
    rows = [figure for row in benchmark.rows for figure in row.figures()]
    result = Measured(rows, [("moving shapes", *tabulate(benchmark.rows))])
    if subject.run is not None:
        sheet = subject.run.evaluation_sheet
        contact_sheet([video for video, _ in benchmark.shown], [label for _, label in benchmark.shown], sheet)
        result.notes.append(f"contact sheet: {sheet}")
    return result


def _memorisation(subject: Subject) -> Measured:
    figures = subject.benchmark.memorised
    rows = [[r["row"], r["metric"], f"{r['value']:.3f}", str(r["n"])] for r in figures]
    return Measured(figures, [("memorisation", ["row", "metric", "value", "n"], rows)])


def _nearest(subject: Subject) -> Measured:
    settings = subject.settings
    result, pairs = quality.measure_nearest(
        subject.model, subject.sampling, subject.compute, settings.prompts, settings.seed, subject.progress
    )
    if subject.run is not None:
        clips, videos, labels = zip(*pairs, strict=True)
        grid_sheet(clips, videos, labels, subject.run.evaluation_sheet)
        result.notes.append(f"contact sheet, original above generated: {subject.run.evaluation_sheet}")
    return result


def _held_out(subject: Subject) -> Measured:
    model, compute = subject.model, subject.compute
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
    interval = f"[{row['low']:.4f}, {row['high']:.4f}]" if row["n"] > 1 else "[one clip]"
    cells = [row["metric"], f"{row['value']:.4f} {interval}", str(row["n"])]
    return Measured([row], [("loss at fixed noise and timestep quantiles", ["metric", "value", "clips"], [cells])])


def _clip(subject: Subject) -> Measured:
    assert subject.clip is not None, "the usual CLIP stands in where none is named"
    return quality.measure_clip(subject.videos, subject.clip, subject.settings.seed, subject.progress)


def _temporal(subject: Subject, whole: bool = True) -> Measured:
    device, seed = subject.compute.device, subject.settings.seed
    return quality.measure_temporal(
        subject.videos, subject.clip if whole else None, device, seed, subject.progress, whole
    )


def _frechet(subject: Subject) -> Measured:
    assert subject.network is not None, "checked before anything is generated"
    return quality.measure_frechet(subject.videos, subject.network, subject.settings.seed, subject.progress)


def _speed(subject: Subject) -> Measured:
    return quality.measure_speed(subject.model, subject.sampling, subject.compute, subject.progress)


@dataclass(frozen=True)
class Metric:
    """How it is measured, whether it needs a model, and which options of the command line it heeds."""

    measure: Callable[[Subject], Measured]
    needs_model: bool
    options: tuple[str, ...] = ()
    is_drawn: bool = True  # whether prompts, clips or noise are drawn by --seed and --prompts
    is_checked: bool = False  # whether the frozen checker reads the videos
    needs: quality.Need = "clips"


MODEL_OPTIONS = ("--steps", "--guidance", "--sampler", "--split")
SAMPLING = MODEL_OPTIONS[:3]
METRICS = {  # in the order they are measured and printed
    "shapes": Metric(_shapes, False, MODEL_OPTIONS, is_checked=True),
    "memorisation": Metric(_memorisation, True, MODEL_OPTIONS, is_checked=True),
    "nearest": Metric(_nearest, True, SAMPLING),
    "clip": Metric(_clip, False, (*SAMPLING, "--clip", "--real")),
    "temporal": Metric(_temporal, False, (*SAMPLING, "--clip", "--real")),
    "dynamic": Metric(partial(_temporal, whole=False), False, (*SAMPLING, "--real")),
    "fvd": Metric(_frechet, False, (*SAMPLING, "--features", "--real")),
    "heldout": Metric(_held_out, True, is_drawn=False, needs="cache"),
    "speed": Metric(_speed, True, SAMPLING, is_drawn=False, needs="nothing"),
}
