"""`generate`: prompts -> files, each with the recipe that makes it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelwright import __version__
from reelwright.diffusion.windows import window_starts
from reelwright.generate.request import Request, load_picture
from reelwright.generate.sampling import Compute, Progress, fitting_latent_size, generate_videos, latent_window
from reelwright.generate.targets import check_target, output_paths, refuse_existing, sheet_path
from reelwright.loading import LoadedModel
from reelwright.recipe import SamplingConfig
from reelwright.types import Size, UsageError
from reelwright.video.sheet import contact_sheet
from reelwright.video.write import write_video


def run_generate(
    model: LoadedModel,
    request: Request,
    out: Path,
    suffix: str | None,
    compute: Compute,
    on_step: Progress | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Make and write every video asked for, a recipe in each, and a contact sheet where there are several.

    `out` is a file where one video is asked for (or a name to number from), else a folder of mp4s or what `suffix`
    says. One video at a time, so that a seed gives the same frames whatever else is asked for beside it. UsageError
    where a file that is there would be replaced without `overwrite`; in a folder names are numbered on.
    """
    size, sampling = request.size(model), request.sampling(model)
    fps = request.fps or model.recipe.data.fps
    jobs = [(prompt, request.seed + n) for prompt in request.prompts for n in range(request.num_videos)]
    if suffix and out.suffix and not out.is_dir() and out.suffix != f".{suffix}":
        raise UsageError(f"--format {suffix} contradicts --out {out}; leave one of them out")
    latent_size = fitting_latent_size(model.bundle, size, sampling)
    picture = load_picture(model, request)
    paths = output_paths(out, suffix or "mp4", jobs)
    check_target(paths[0], fps)
    sheet = sheet_path(out, paths) if len(paths) > 1 else None
    refuse_existing([*paths, *([sheet] if sheet else [])], overwrite)
    if told := told_of_windows(model, sampling, size, latent_size):
        say(told)
    videos: list[np.ndarray] = []
    for number, ((prompt, seed), path) in enumerate(zip(jobs, paths, strict=True)):

        def advance(done: int, steps: int, before: int = number) -> None:
            if on_step:
                on_step(before * steps + done, len(jobs) * steps)

        negative = request.negative_prompt
        videos += generate_videos(
            model.bundle, [prompt], [seed], size, sampling, compute, negative, on_step=advance, picture=picture
        )
        one = replace(request, seed=seed, num_videos=1, prompts=(prompt,))
        write_video(path, videos[-1], fps, clip_recipe(model, one, size, sampling, fps, compute))
    if sheet is not None:
        labels = [f"{prompt} (seed {seed})" for prompt, seed in jobs]
        contact_sheet(videos, labels, sheet)
        paths = [*paths, sheet]
    return paths


def told_of_windows(model: LoadedModel, sampling: SamplingConfig, size: Size, latent_size: Size) -> str:
    """What is done with a video that does not go through the model at once, in a line; '' for any other."""
    window, overlap = latent_window(model.bundle, sampling, latent_size.frames)
    if window == latent_size.frames:
        return ""
    count = len(window_starts(latent_size.frames, window, overlap))
    how = f"blended over {overlap} of its {window} latent frames" if overlap else "with no frame in common"
    return (
        f"{size.frames} frames go through the model in {count} windows of {sampling.window_frames}, each {how}, at "
        "every step; --window 0 takes them all at once"
    )


def clip_recipe(
    model: LoadedModel, request: Request, size: Size, sampling: SamplingConfig, fps: float, compute: Compute
) -> dict[str, Any]:
    """What a generated file carries: enough for `generate --from` to make it again."""
    return {
        "prompt": request.prompts[0],
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        **sampling.plain(),
        "frames": size.frames,
        "width": size.width,
        "height": size.height,
        "fps": fps,
        **({} if request.image is None else {"image": request.image}),
        "precision": compute.precision,
        "model": model.origin,
        "model_step": model.step,
        "model_sha256": model.weights_sha256,
        **({"loras": list(model.loras)} if model.loras else {}),
        "versions": {"reelwright": __version__, "torch": torch.__version__},
    }
