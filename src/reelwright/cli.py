"""The command line. It only reads options and prints; every verb is a function in a file of its own."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from reelwright.console import Progress, print_error, print_table
from reelwright.types import UsageError, UserError

app = typer.Typer(
    name="reelwright",
    help="From a folder of captioned clips to a text-to-video model you own. --debug shows where a failure happened.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the recipe's")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe (YAML)")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")]

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            print_error("interrupted; the same command goes on where it stopped")
    except UserError as error:
        if debug:
            traceback.print_exc()
        print_error(str(error))
        code = error.exit_code
    except typer.Exit as exit_:
        code = exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "show", None)  # typer's own usage errors know how to print themselves
        if show is not None:
            show()
            code = UsageError.exit_code
        elif debug:
            raise
        else:
            print_error(f"{type(error).__name__}: {error} (an unexpected failure; --debug shows where)")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        from reelwright import __version__

        print(f"reelwright {__version__}")
        raise typer.Exit()


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """From a folder of captioned clips to a text-to-video model you own."""


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="folder for clips, cache, run and report")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="training steps; more follow prompts better")] = None,
) -> None:
    """The whole chain on rendered clips, offline, in minutes; ends with a report page."""
    from reelwright.demo import run_demo

    run_demo(out, steps)


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="the new project's folder")]) -> None:
    """A project folder: data/videos/, a captions.json template, a recipe, requirements.txt."""
    from reelwright.project import create_project

    for line in create_project(folder):
        print(line)


@app.command()
def shapes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the clips")],
    clips: Annotated[int, typer.Option(min=1, help="number of clips")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same bytes")] = 0,
    track: Annotated[str, typer.Option(help="s1, or s1-hard with more shapes and backgrounds")] = "s1",
    frames: Annotated[int, typer.Option(min=2)] = 16,
    width: Annotated[int, typer.Option(min=16)] = 64,
    height: Annotated[int, typer.Option(min=16)] = 64,
    fps: Annotated[float, typer.Option(min=0.1)] = 8.0,
) -> None:
    """Synthetic captioned clips of moving shapes, as mp4 files with captions.json."""
    from reelwright.shapes.files import write_collection
    from reelwright.types import Size
    from reelwright.video.write import write_video

    with Progress() as progress:
        write_collection(
            out, clips, seed, track, Size(frames, height, width), fps, write_video,
            progress=lambda done, total: progress("rendering", done, total),
        )  # fmt: skip
    print(f"{clips} clips in {out / 'videos'}, captions in {out / 'captions.json'}, states in {out / 'scenes.json'}")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="a folder of captioned clips, or a recipe (YAML)")],
    overrides: Overrides = None,
    html: Annotated[Path | None, typer.Option(help="write a page with thumbnails here")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What would be used and dropped, and why. Nothing is written but the page."""
    from reelwright.inspect import data_config, inspect_data, write_page

    with Progress(quiet=as_json) as progress:
        config = data_config(data, overrides or [])
        inspection = inspect_data(config, progress)
        if html:
            write_page(inspection, config.fps, html, progress)
    if as_json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        for line in inspection.table():
            print(line)
    if html:
        print(f"page: {html}", file=sys.stderr)


@app.command()
def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    verify: Annotated[bool, typer.Option("--verify", help="re-read and re-hash every source file")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="fit codec and tokenizer anew on today's data")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Data -> cache. Run it again: only what changed is done."""
    from reelwright.prepare import prepare as run_prepare
    from reelwright.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or [])
    with Progress(quiet=as_json) as progress:
        summary = run_prepare(loaded, progress, verify=verify, refit=refit)
    if as_json:
        print(json.dumps(summary.to_json(), indent=1))
    else:
        for line in summary.lines():
            print(line)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    fork: Annotated[Path | None, typer.Option(help="go on from this run's weights in a new run directory")] = None,
) -> None:
    """Recipe -> run directory. Run it again: it resumes."""
    from reelwright.recipe import Recipe
    from reelwright.resume import fork_run
    from reelwright.train import train as run_train

    loaded = Recipe.load(recipe, overrides or [])
    if fork is not None:
        loaded = fork_run(loaded, fork)
    with Progress() as progress:
        outcome = run_train(
            loaded,
            on_step=lambda step, total, figures: progress("training", step, total, f"loss {figures['loss']:.4f}"),
            on_prepare=progress,
            say=progress.say,
        )
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a run directory, a checkpoint, or a recipe")],
    prompt: Annotated[list[str] | None, typer.Option(help="what to show; may be given several times")] = None,
    out: Annotated[Path, typer.Option(help="a file, or a folder for several videos")] = Path("outputs"),
    num_videos: Annotated[int, typer.Option(min=1, help="videos a prompt, seeds counting up")] = 1,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0)] = None,
    negative_prompt: Annotated[str, typer.Option()] = "",
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, euler, heun, dpmpp_2m or unipc")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    frames: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    fps: Annotated[float | None, typer.Option(min=0.1)] = None,
    video_format: Annotated[str | None, typer.Option("--format", help="mp4, gif or webm")] = None,
    image: Annotated[Path | None, typer.Option(help="first frame, for models that take one")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    offload: Annotated[bool, typer.Option("--offload", help="keep on the device only the part at work")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="a step number of the run")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="the last weights, not their moving average")] = False,
    from_clip: Annotated[Path | None, typer.Option("--from", help="repeat what made this clip")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Prompts -> videos, each with its recipe inside and beside it."""
    from reelwright.bundle import load_model
    from reelwright.generate import Compute, Request, cut_prompts, run_generate
    from reelwright.video.write import read_recipe

    if image is not None:
        raise UsageError(f"--image {image}: this model makes videos from text alone; leave --image out")
    request = Request(
        tuple(prompt or ()), num_videos, seed, negative_prompt, sampler, steps, guidance,
        frames=frames, width=width, height=height, fps=fps,
    )  # fmt: skip
    made: dict[str, object] = {}
    if from_clip is not None:
        if request != Request(()):
            raise UsageError("--from repeats a clip as it was made; leave --prompt, --seed, --steps and the like out")
        made = read_recipe(from_clip)
        request = Request.from_recipe(made, from_clip)
        precision = str(made.get("precision", precision)) if precision == "auto" else precision
    elif not prompt:
        raise UsageError("nothing to show: give --prompt TEXT (several times for several videos) or --from CLIP")
    compute = Compute.resolve(device, precision, offload)
    loaded = load_model(model, checkpoint, raw)
    for warning in (*loaded.warnings, *cut_prompts(loaded.bundle, [*request.prompts, request.negative_prompt])):
        print_error(warning)
    if from_clip is not None and made.get("model_sha256") != loaded.weights_sha256:
        print_error(f"{from_clip} was made with other weights ({made.get('model')}); this video will differ")
    with Progress(quiet=as_json) as progress:
        paths = run_generate(
            loaded, request, out, video_format, compute, lambda done, total: progress("sampling", done, total)
        )
    if as_json:
        print(json.dumps({"files": [str(path) for path in paths]}))
    else:
        for path in paths:
            print(path)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL|FOLDER", help="a model, or a folder of captioned videos")],
    metrics: Annotated[str, typer.Option(help="comma-separated; 'auto' takes what fits the data")] = "auto",
    prompts: Annotated[int, typer.Option(min=2, help="prompts a split; 256 quick, 1024 to publish")] = 256,
    split: Annotated[list[str] | None, typer.Option(help="splits of the shapes benchmark; all by default")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0)] = None,
    sampler: Annotated[str | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    checkpoint: Annotated[str | None, typer.Option(help="a step number of the run")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="the last weights, not their moving average")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the scores here as well")] = None,
) -> None:
    """Scores with intervals and control rows: a table, JSON, contact sheets, and the run's report page."""
    from reelwright.evaluate import Settings, run_evaluate
    from reelwright.generate import Compute

    settings = Settings(
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        prompts=prompts,
        splits=tuple(split or ()),
        seed=seed,
        sampling={"steps": steps, "guidance": guidance, "sampler": sampler},
    )
    compute = Compute.resolve(device, precision, offload=False)
    with Progress() as progress:
        result = run_evaluate(target, settings, compute, checkpoint, raw, progress)
    for title, headers, rows in result.tables():
        print_table(headers, rows, title)
        print()
    for note in result.notes:
        print(note)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False), encoding="utf-8")
        print(f"scores: {json_path}")
