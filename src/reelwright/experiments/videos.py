"""Videos of several runs at equal prompts and seeds: what their samples/ have in common, else made now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reelwright.experiments.reading import RunFacts, Sample
from reelwright.types import UserError

MAX_PROMPTS = 4
Progress = Callable[[str, int, int], None]
Videos = list[tuple[str, list[tuple[Path, str]]]]  # what was asked -> (file, arm)


def side_by_side(
    arms: Mapping[str, Sequence[RunFacts]], folder: Path, progress: Progress, prompts: Sequence[str] = ()
) -> tuple[Videos, list[str]]:
    """For each of a few prompts one video an arm, of the arm's first run; and what could not be shown.

    Samples of the runs are taken where all of them have the same (prompt, seed) under the same sampler settings; else,
    or where `prompts` are given, videos are made by the newest weights and written to `folder`.
    """
    chosen = _one_run_an_arm(arms)
    if not chosen:
        return [], []
    common = [] if prompts else _common_samples([run.samples for run in chosen.values()])
    if common:
        asked = [f"{prompt} \N{MIDDLE DOT} seed {seed}" for prompt, seed in common]
        rows = [
            [next(s for s in run.samples if (s.prompt, s.seed) == key).path for run in chosen.values()]
            for key in common
        ]
        return [(text, list(zip(row, chosen, strict=True))) for text, row in zip(asked, rows, strict=True)], []
    return _generate(chosen, prompts, folder, progress)


def _one_run_an_arm(arms: Mapping[str, Sequence[RunFacts]]) -> dict[str, RunFacts]:
    """Of each arm the run of the lowest seed, one that all arms have if there is one."""
    runs = {arm: list(group) for arm, group in arms.items() if group}
    shared = set.intersection(*({run.seed for run in group} for group in runs.values())) if runs else set()
    return {arm: min(group, key=lambda run: (run.seed not in shared, run.seed)) for arm, group in runs.items()}


def _common_samples(samples: Sequence[Sequence[Sample]]) -> list[tuple[str, int]]:
    if len({sample.sampling for group in samples for sample in group}) > 1:
        return []
    keys = [dict.fromkeys((sample.prompt, sample.seed) for sample in group) for group in samples]
    return [key for key in keys[0] if all(key in other for other in keys[1:])][:MAX_PROMPTS]


def _generate(
    chosen: Mapping[str, RunFacts], prompts: Sequence[str], folder: Path, progress: Progress
) -> tuple[Videos, list[str]]:
    """Each model makes the same prompts at seed 0, all sampled as the first run's recipe says."""
    from reelwright.generate import Compute, generate_videos
    from reelwright.loading import load_model
    from reelwright.video.write import write_video

    known = [sample.prompt for run in chosen.values() for sample in run.samples]
    wanted = list(dict.fromkeys(prompts or known))[:MAX_PROMPTS]
    if not wanted:
        return [], ["no videos are shown: none of the runs has samples; name prompts with --prompt"]
    compute = Compute.resolve("auto", "auto")
    sampling, made, notes = None, {}, []
    for number, (arm, run) in enumerate(chosen.items()):
        progress("making videos", number, len(chosen))
        try:
            model = load_model(str(run.path))
            sampling = sampling or model.recipe.sampling
            frames = generate_videos(model.bundle, wanted, [0] * len(wanted), model.recipe.size, sampling, compute)
        except UserError as error:
            notes.append(f"no videos of {run.name}: {error}")
            continue
        for index, video in enumerate(frames):
            path = folder / f"{number:02d}-{index:02d}.mp4"
            write_video(path, video, model.recipe.data.fps, {"prompt": wanted[index], "seed": 0, "run": run.name})
            made.setdefault(index, []).append((path, arm))
    return [(f"{wanted[index]} \N{MIDDLE DOT} seed 0", files) for index, files in made.items()], notes
