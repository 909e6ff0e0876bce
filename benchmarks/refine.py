"""`noise` and `refine` on a model's own training clips: distance by strength, what refining wins, memory by length.

    python benchmarks/refine.py MODEL [--clips 8] [--strength 0.3] [--sheet FILE.png] [--json FILE]

MODEL is a run whose data is still there: runs/eight-clips after `reelwright train recipes/eight-clips.yaml`.
Table 1: mean PSNR to the input of what both commands write, by strength. Table 2, clip by clip at one strength: the
noisy video, and what refining makes of that file (`--already-noisy`) and of the clean clip, each against the clean
clip. Table 3: peak memory and time of `reelwright refine` in a process of its own, on made videos of 480x270 at 24
frames a second; what the longer ones need more of is what grows with length. These processes give freed blocks back at
once (a fixed MALLOC_MMAP_THRESHOLD_): else glibc keeps some 300 MiB of them, and its habits are what is measured.
Everything goes through files, so H.264 has its share in every figure. Prompts are the clips' first captions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from reelwright.console import print_table
from reelwright.generate import Compute, Request
from reelwright.loading import LoadedModel, load_model
from reelwright.metrics.frames import psnr
from reelwright.quality import real_clips
from reelwright.refine import run_noise, run_refine
from reelwright.video.sheet import contact_sheet
from reelwright.video.write import read_frames, streamed_video, write_video

STRENGTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
HEIGHT, WIDTH, FPS = 270, 480, 24
SECONDS = (2, 10, 40)


@dataclass(frozen=True)
class Runner:
    """Both commands on one clip, from file to frames."""

    model: LoadedModel
    compute: Compute
    folder: Path

    def noise(self, source: Path, strength: float) -> np.ndarray:
        out = run_noise(self.model, source, self.folder / "noise.mp4", strength, 0, self.compute, overwrite=True).path
        return read_frames(out)[0]

    def refine(self, source: Path, prompt: str, strength: float, already_noisy: bool = False) -> np.ndarray:
        out, request = self.folder / "refine.mp4", Request((prompt,))
        run_refine(self.model, source, out, request, strength, already_noisy, self.compute, overwrite=True)
        return read_frames(out)[0]


def by_strength(runner: Runner, clips: list[tuple[str, Path, np.ndarray]]) -> list[dict[str, float]]:
    rows = []
    for strength in STRENGTHS:
        noisy = fmean(psnr(runner.noise(path, strength), frames) for _, path, frames in clips)
        refined = fmean(psnr(runner.refine(path, prompt, strength), frames) for prompt, path, frames in clips)
        rows.append({"strength": strength, "noise_db": round(noisy, 2), "refine_db": round(refined, 2)})
    return rows


def by_clip(
    runner: Runner, clips: list[tuple[str, Path, np.ndarray]], strength: float, keep: Callable[..., None]
) -> list[dict[str, Any]]:
    rows = []
    for prompt, path, frames in clips:
        noisy = runner.noise(path, strength)  # leaves noise.mp4, which is refined next
        later = runner.refine(runner.folder / "noise.mp4", prompt, strength, already_noisy=True)
        direct = runner.refine(path, prompt, strength)
        keep(prompt, frames, noisy, later, direct)
        values = [round(psnr(video, frames), 2) for video in (noisy, later, direct)]
        rows.append(dict(zip(("noisy_db", "refined_db", "direct_db"), values, strict=True)) | {"prompt": prompt})
    return rows


def write_long(path: Path, seconds: int) -> None:
    """Waves of colour that move on, one picture in memory at a time."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    with streamed_video(path, HEIGHT, WIDTH, Fraction(FPS)) as add:
        for f in range(seconds * FPS):
            waves = [np.sin((x + 3 * f) / 40), np.cos((y - 2 * f) / 30), np.sin((x + y + f) / 50)]
            add(np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8))


def by_length(model: str, folder: Path, strength: float) -> list[dict[str, Any]]:
    rows = []
    for seconds in SECONDS:
        path = folder / f"{seconds}.mp4"
        write_long(path, seconds)
        command = [sys.executable, "-m", "reelwright", "refine", model, str(path), str(folder / "long.mp4")]
        options = [
            "--prompt",
            "waves",
            "--strength",
            str(strength),
            "--steps",
            "4",
            "--guidance",
            "1",
            "--device",
            "cpu",
        ]
        started = time.perf_counter()
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
        with subprocess.Popen([*command, *options, "--json"], stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"reelwright refine failed on the video of {seconds} s")
        made = json.loads(output)
        assert made["frames"] == seconds * FPS
        rows.append(
            {
                "seconds": seconds,
                "frames": made["frames"],
                "windows": made["windows"],
                "peak_mib": round(usage.ru_maxrss / 1024),
                "raw_mib": round(made["frames"] * HEIGHT * WIDTH * 3 / 2**20),  # uint8, were it all in memory
                "wall_seconds": round(time.perf_counter() - started, 1),
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print_table(list(rows[0]), [list(row.values()) for row in rows], f"\n{title}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    compute = Compute.resolve("auto", "auto")
    found, _ = real_clips(model.recipe, "train", arguments.clips, 0, lambda *_: None)
    labels: list[str] = []
    videos: list[np.ndarray] = []

    def keep(prompt: str, *rows: np.ndarray) -> None:
        names = ("original", "noisy", "noisy, refined", "original, refined")
        labels.extend(f"{name}: {prompt}" for name in names)
        videos.extend(rows)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runner = Runner(model, compute, folder)
        clips = []
        for number, (sample, frames) in enumerate(found):
            path = folder / f"clip-{number}.mp4"
            write_video(path, frames, model.recipe.data.fps)
            clips.append((sample.clip.captions[0], path, frames))
        strengths = by_strength(runner, clips)
        show(f"PSNR to the input, dB, mean of {len(clips)} clips", strengths)
        refined = by_clip(runner, clips, arguments.strength, keep)
        show(f"PSNR to the clean clip at strength {arguments.strength:g}, dB", refined)
        nearer = sum(row["refined_db"] > row["noisy_db"] for row in refined)
        won = fmean(row["refined_db"] - row["noisy_db"] for row in refined)
        print(f"refined is nearer to the clean clip than its noisy input in {nearer} of {len(refined)}: {won:+.2f} dB")
        lengths = by_length(arguments.model, folder, arguments.strength)
        show(f"peak memory of refine, {WIDTH}x{HEIGHT} at {FPS} fps", lengths)
    if arguments.sheet:
        contact_sheet(videos, labels, arguments.sheet)
    if arguments.json:
        figures = {
            "model_sha256": model.weights_sha256,
            "steps_trained": model.step,
            "precision": compute.precision,
            "by_strength": strengths,
            "by_clip": refined,
            "strength": arguments.strength,
            "refined_minus_noisy_db": round(won, 2),
            "by_length": lengths,
        }
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
