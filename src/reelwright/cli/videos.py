"""Commands that make videos: generate, noise, refine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reelwright.cli.app import app
from reelwright.cli.options import (
    CheckpointOption,
    DeviceOption,
    GuidanceOption,
    JsonFlag,
    OffloadOption,
    OverwriteFlag,
    PrecisionOption,
    RawFlag,
    SamplerOption,
    SeedOption,
    StepsOption,
)
from reelwright.console import Progress, print_error
from reelwright.types import UsageError

if TYPE_CHECKING:
    from reelwright.generate import Compute
    from reelwright.loading import LoadedModel
    from reelwright.refine import Outcome

ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="a run directory, a checkpoint, an exported model, or a recipe")
]
InputPath = Annotated[Path, typer.Argument(metavar="IN", help="a video")]
OutputPath = Annotated[Path, typer.Argument(metavar="OUT", help="an mp4 or webm to write")]
Strength = Annotated[float, typer.Option(help="how much noise: 0 none, 1 nothing but noise")]
NegativePrompt = Annotated[str, typer.Option(help="what guidance leads away from")]


@app.command()
def generate(
    model: ModelPath,
    prompt: Annotated[list[str] | None, typer.Option(help="what to show; may be given several times")] = None,
    out: Annotated[Path, typer.Option(help="a file, or a folder for several videos")] = Path("outputs"),
    num_videos: Annotated[int, typer.Option(min=1, help="videos a prompt, seeds counting up")] = 1,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_low: Annotated[
        float | None, typer.Option(min=0, help="of the expert for low noise, in models of two experts")
    ] = None,
    negative_prompt: NegativePrompt = "",
    sampler: SamplerOption = None,
    seed: SeedOption = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="of each video; the run's own where not given")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="in pixels; the run's own where not given")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="in pixels; the run's own where not given")] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="frames a second; the run's own where not given")] = None,
    window: Annotated[
        int | None, typer.Option(min=0, help="frames the model sees at once, 0 all; as it was trained where not given")
    ] = None,
    video_format: Annotated[str | None, typer.Option("--format", help="mp4, gif or webm")] = None,
    image: Annotated[Path | None, typer.Option(help="first frame, for models that take one")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    offload: OffloadOption = "none",
    checkpoint: CheckpointOption = None,
    raw: RawFlag = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:EXPERT][:SCALE]", help="a LoRA to add; may be given several times"),
    ] = None,
    from_clip: Annotated[Path | None, typer.Option("--from", help="repeat what made this clip")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Prompts -> videos, each with its recipe inside and beside it."""
    from reelwright.generate import Request, run_generate
    from reelwright.loading import with_loras
    from reelwright.video.write import read_recipe

    request = Request(
        tuple(prompt or ()) or (("",) if image else ()), num_videos, seed, negative_prompt, sampler, steps, guidance,
        guidance_low=guidance_low, window_frames=window, frames=frames, width=width, height=height, fps=fps,
        image=str(image) if image else None,
    )  # fmt: skip
    made: dict[str, object] = {}
    if from_clip is not None:
        if request != Request(()):
            raise UsageError("--from repeats a clip as it was made; leave --prompt, --seed, --steps and the like out")
        made = read_recipe(from_clip)
        request = Request.from_recipe(made, from_clip)
        precision = str(made.get("precision", precision)) if precision == "auto" else precision
        if not lora:
            lora = [f"{entry['file']}:{entry['scale']}" for entry in _loras(made)]
    elif not request.prompts:
        raise UsageError("nothing to show: give --prompt TEXT (several times for several videos) or --from CLIP")
    compute = _compute(device, precision, offload)
    loaded = _load(model, checkpoint, raw, [*request.prompts, request.negative_prompt])
    loaded = with_loras(loaded, lora or ())
    if from_clip is not None:
        loras = [[entry["sha256"] for entry in entries] for entries in (_loras(made), loaded.loras)]
        if made.get("model_sha256") != loaded.weights_sha256 or loras[0] != loras[1]:
            print_error(f"{from_clip} was made with other weights ({made.get('model')}); this video will differ")
    with Progress(quiet=as_json) as progress:
        paths = run_generate(
            loaded, request, out, video_format, compute, lambda done, total: progress("sampling", done, total),
            overwrite, print_error if as_json else progress.say,
        )  # fmt: skip
    if as_json:
        print(json.dumps({"files": [str(path) for path in paths]}))
    else:
        for path in paths:
            print(path)


@app.command()
def noise(
    model: ModelPath,
    source: InputPath,
    out: OutputPath,
    strength: Strength = 0.3,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    offload: OffloadOption = "none",
    checkpoint: CheckpointOption = None,
    raw: RawFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """A video -> the video as it looks after noise of a strength: what refine begins with."""
    from reelwright.refine import run_noise

    compute = _compute(device, "fp32", offload)
    loaded = _load(model, checkpoint, raw)
    with Progress(quiet=as_json) as progress:
        outcome = run_noise(
            loaded, source, out, strength, seed, compute, lambda done, total: progress("window", done, total),
            print_error if as_json else progress.say, overwrite,
        )  # fmt: skip
    _print_outcome(outcome, as_json)


@app.command()
def refine(
    model: ModelPath,
    source: InputPath,
    out: OutputPath,
    prompt: Annotated[str, typer.Option(help="what the video shows")],
    strength: Strength = 0.3,
    negative_prompt: NegativePrompt = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="of a whole walk from pure noise; its last part is taken")
    ] = None,
    guidance: GuidanceOption = None,
    sampler: SamplerOption = None,
    seed: SeedOption = 0,
    already_noisy: Annotated[bool, typer.Option("--already-noisy", help="IN is what noise wrote: add none")] = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    offload: OffloadOption = "none",
    checkpoint: CheckpointOption = None,
    raw: RawFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """A video and a prompt -> the video noised to a strength and denoised again; same size, rate and length."""
    from reelwright.generate import Request
    from reelwright.refine import run_refine

    request = Request((prompt,), 1, seed, negative_prompt, sampler, steps, guidance)
    compute = _compute(device, precision, offload)
    loaded = _load(model, checkpoint, raw, [prompt, negative_prompt])
    with Progress(quiet=as_json) as progress:
        outcome = run_refine(
            loaded, source, out, request, strength, already_noisy, compute,
            lambda done, total: progress("refining", done, total), print_error if as_json else progress.say, overwrite,
        )  # fmt: skip
    _print_outcome(outcome, as_json)


def _loras(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The LoRAs a clip's recipe names; a file's metadata is not to be trusted."""
    entries = made.get("loras", [])
    known = {"file", "scale", "sha256"}
    return [e for e in entries if isinstance(e, dict) and known <= set(e)] if isinstance(entries, list) else []


def _compute(device: str, precision: str, offload: str) -> Compute:
    """Where to work, and a line where `offload` has nothing to do there."""
    from reelwright.generate import Compute

    compute = Compute.resolve(device, precision, offload)
    if offload != compute.offload:
        print_error(f"--offload {offload}: no effect on {compute.device}, where all of the model is anyway")
    return compute


def _load(model: str, checkpoint: str | None, raw: bool, prompts: Sequence[str] = ()) -> LoadedModel:
    """The model, its warnings printed, and those of prompts that it does not see whole."""
    from reelwright.generate import cut_prompts
    from reelwright.loading import load_model

    loaded = load_model(model, checkpoint, raw)
    for warning in (*loaded.warnings, *(cut_prompts(loaded.bundle, prompts) if prompts else ())):
        print_error(warning)
    return loaded


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    if not as_json:
        print(outcome.path)
        return
    frames, height, width = outcome.size.tuple
    facts = {
        "file": str(outcome.path), "frames": frames, "width": width, "height": height, "fps": outcome.fps,
        "windows": outcome.windows, "steps": outcome.steps,
    }  # fmt: skip
    print(json.dumps(facts))
