"""Our training loop against a plain one: samples a second, loss, and the share of the machine's matrix rate.

    python benchmarks/train_step.py [--steps 200] [--json FILE]

The same DiT (width 512, 8 blocks, 64 tokens, batch 32) on the same clips. Ours is `reelwright.train.train` as it
ships: precision auto, moving average, keyed draws, logging. The other is the loop a person writes first: fp32, eager,
torch's AdamW, no moving average. They take turns in one process (ours, plain, plain, ours, ...), so that a machine
whose speed drifts slows both; the speed-up is the median of the ratios of neighbouring turns. They do so over the
first SPEED_STEPS steps of our run, which then goes on alone. Anything else at work on the machine spoils the figures.
The loss is that of two runs of our own loop on the same draws, in the automatic precision and in fp32.
The matrix rate is the best of 20 products of 2048 x 2048 matrices in the precision of our run, taken before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from reelwright.bundle import DenoisingLoss, build_bundle, draw
from reelwright.console import print_table
from reelwright.prepare import open_prepared, prepare
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.shapes.files import write_collection
from reelwright.train import train
from reelwright.training.devices import DTYPES, resolve_device, resolve_precision
from reelwright.types import Size
from reelwright.video.write import write_video

BATCH, TURN, CLIPS, SPEED_STEPS = 32, 5, 128, 60
SIZE, FPS = Size(16, 64, 64), 8.0  # 4 x 4 x 4 = 64 tokens of a [4, 16, 16] block


def make_recipe(folder: Path, steps: int, precision: str) -> Recipe:
    return Recipe.parse(
        {
            "run_dir": str(folder / f"run-{precision}"),
            "cache_dir": str(folder / "cache"),
            "data": {"path": str(folder / "shapes"), "frames": SIZE.frames, "fps": FPS, "validation": 0.25},
            "codec": {"type": "pca", "block": [4, 16, 16], "channels": 160},
            "text": {"type": "native", "vocab_size": 512},
            "model": {"type": "dit", "width": 512, "depth": 8, "heads": 8},
            "train": {
                "steps": steps,
                "batch_size": BATCH,
                "learning_rate": 5e-4,
                "warmup_steps": 20,
                "ema": 0.9,
                "precision": precision,
                "log_every": 1,
                "evaluate_every": steps,
                "sample_every": 0,
                "sample_prompts": 1,
                "save_every": steps,
            },
            "sampling": {"steps": 2},
        }
    )


def plain_loop(recipe: Recipe) -> Iterator[None]:
    """One step of the loop a person writes first, each time it is advanced."""
    prepared = open_prepared(recipe)
    bundle = build_bundle(recipe)
    module = DenoisingLoss(bundle)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.train.learning_rate)
    indices = sorted(prepared.training.samples)
    module.train()
    while True:
        chosen = [indices[i] for i in torch.randint(len(indices), (BATCH,)).tolist()]
        batch = prepared.training.load([(index, 0) for index in chosen], seed=0, caption_dropout=0.1)
        latents, noise, t = batch.latents.mean, torch.randn_like(batch.latents.mean), torch.rand(BATCH)
        loss = module(latents, noise, t, batch.text).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        yield


def interleaved(recipe: Recipe) -> tuple[list[float], list[float]]:
    """Seconds of each turn of TURN steps: (ours, plain), neighbours in time at equal places of the lists."""
    plain = plain_loop(recipe)
    next(plain)  # warm-up
    ours_seconds: list[float] = []
    plain_seconds: list[float] = []
    mark = time.perf_counter()

    def after_step(step: int, total: int, figures: dict[str, Any]) -> None:
        nonlocal mark
        if step % TURN or step > SPEED_STEPS:
            return
        now = time.perf_counter()
        if step > TURN:  # the first turn is warm-up
            ours_seconds.append(now - mark)
        # ours, plain, plain, ours: two turns of the plain loop after every second of ours
        if (step // TURN) % 2 == 0:
            for _ in range(2):
                started = time.perf_counter()
                for _ in range(TURN):
                    next(plain)
                plain_seconds.append(time.perf_counter() - started)
        mark = time.perf_counter()

    train(recipe, on_step=after_step, say=lambda _: None)
    count = min(len(ours_seconds), len(plain_seconds))
    return ours_seconds[:count], plain_seconds[:count]


def held_out(recipe: Recipe) -> float:
    records = RunDirectory(recipe.run_dir).read_metrics()
    return next(r["heldout_loss"] for r in reversed(records) if "heldout_loss" in r)


def step_flops(recipe: Recipe) -> int:
    """Floating-point operations of one optimizer step's matrix products, forward and backward."""
    prepared = open_prepared(recipe)
    bundle = build_bundle(recipe)
    module = DenoisingLoss(bundle)
    batch = prepared.training.load([(i, 0) for i in sorted(prepared.training.samples)[:BATCH]], seed=0)
    drawn = draw(batch, bundle.objective, 0)
    with FlopCounterMode(display=False) as counter:
        module(drawn.latents, drawn.noise, drawn.t, batch.text).mean().backward()
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype, side: int = 2048, repeats: int = 20) -> float:
    """Best floating-point operations a second of a side x side product."""
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = resolve_device("cpu")
    precision = resolve_precision("auto", device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_collection(folder / "shapes", CLIPS, 0, "s1", SIZE, FPS, write_video)
        automatic, full = (make_recipe(folder, arguments.steps, p) for p in (precision, "fp32"))
        prepare(automatic)
        rate = matrix_rate(DTYPES[precision])
        ours, plain = interleaved(automatic)
        if precision != "fp32":
            train(full, say=lambda _: None)
        loss, full_loss = held_out(automatic), held_out(full)
        flops = step_flops(automatic)
    ours_rate, plain_rate = (TURN * BATCH / statistics.median(turns) for turns in (ours, plain))
    ratio = statistics.median(p / o for o, p in zip(ours, plain, strict=True))
    share = flops * ours_rate / BATCH / rate
    figures = {
        "precision": precision,
        "threads": torch.get_num_threads(),
        "ours_samples_per_second": round(ours_rate, 2),
        "plain_fp32_samples_per_second": round(plain_rate, 2),
        "speed_up": round(ratio, 3),
        "heldout_loss": loss,
        "heldout_loss_fp32": full_loss,
        "loss_difference_percent": round(100 * abs(loss / full_loss - 1), 3),
        "gflop_per_step": round(flops / 1e9, 1),
        "matrix_rate_gflops": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(share, 4),
    }
    print_table(["figure", "value"], [[k, v] for k, v in figures.items()], "training step, CPU")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
