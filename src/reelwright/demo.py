"""`reelwright demo`: the whole chain on rendered clips, by the very commands a user types."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reelwright.config import parse_yaml, to_yaml
from reelwright.console import print_table
from reelwright.signals import INTERRUPTED, INTERRUPTED_CODES, interrupts_held
from reelwright.types import UserError

CLIPS = 3000
CAPTIONS = 8  # of each clip at most
SCORED_PROMPTS = 128
SCORED_SPLITS = ("in_distribution", "held_out_pairs")
SHOWN_PROMPTS = ("a red circle moves left", "a blue square moves up", "a yellow triangle grows")

# The same settings as recipes/shapes-cpu.yaml (a test holds them together), for fewer steps.
CODEC_STEPS = 1300
STEPS = 3000
RECIPE = """\
seed: 0
data: {frames: 16, fps: 8, width: 64, height: 64, validation: 0.02}
codec: {type: content_motion, block: [16, 64, 64], fit_clips: 6000}
text: {type: native, vocab_size: 512, width: 128, depth: 1, length: 32}
model: {type: dit, width: 192, depth: 4, heads: 4, text_tokens: pooled, parts: [24, 20]}
objective: {schedule: flow, shift: 1.5, prediction: x0}
train:
  batch_size: 64
  learning_rate: 2.0e-3
  warmup_steps: 100
  ema: 0.998
  mixup: [0.9, 0]
  save_every: 1000
  evaluate_every: 1000
  sample_every: 1000
sampling: {sampler: euler, steps: 20, guidance: 1.5}
"""


def run_demo(out: Path, steps: int | None = None) -> None:
    """Render, inspect, prepare, train, generate and evaluate in the folder `out`; print each command and the scores.

    Run again, it goes on where it was interrupted. UserError where one of the commands fails.
    """
    started = time.perf_counter()
    data, run, recipe, scores = out / "shapes", out / "run", out / "recipe.yaml", out / "scores.json"
    out.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, data, run, out / "cache", steps or STEPS)
    _command("shapes", data, "--clips", CLIPS, "--captions", CAPTIONS, "--seed", 0)
    _command("inspect", recipe, "--html", out / "inspection.html")
    _command("prepare", recipe)
    _command("train", recipe)
    prompts = [part for prompt in SHOWN_PROMPTS for part in ("--prompt", prompt)]
    _command("generate", run, *prompts, "--seed", 0, "--out", out / "videos")
    splits = [part for split in SCORED_SPLITS for part in ("--split", split)]
    metrics = ("--metrics", "shapes,memorisation", "--prompts", SCORED_PROMPTS)
    _command("evaluate", run, *metrics, *splits, "--json", scores)
    _summary(json.loads(scores.read_text(encoding="utf-8"))["scores"])
    print(f"videos: {out / 'videos'}")
    print(f"report: {run / 'report.html'}")
    print(f"all of it took {(time.perf_counter() - started) / 60:.1f} minutes")


def write_recipe(path: Path, data: Path, run: Path, cache: Path, steps: int) -> None:
    values: dict[str, Any] = {"run_dir": str(run), "cache_dir": str(cache), **parse_yaml(RECIPE, "the demo's recipe")}
    values["data"] = {"path": str(data), **values["data"]}
    values["codec"]["steps"] = CODEC_STEPS
    values["train"] = {"steps": steps, **values["train"]}
    path.write_text(to_yaml(values), encoding="utf-8")


def _command(*arguments: object) -> None:
    """Run one command of ours as a user would, its output going to the terminal."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ reelwright {shlex.join(words)}", flush=True)
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))  # Ctrl-C is for the command to act on
    try:
        with interrupts_held():
            child = subprocess.Popen([sys.executable, "-m", "reelwright", *words])
        if heard:  # before there was a child to hear it
            child.send_signal(signal.SIGINT)
        code = child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if code in INTERRUPTED_CODES:
        raise SystemExit(INTERRUPTED)  # it has said what is kept
    if code != 0:
        raise UserError(f"the demo stopped: `reelwright {words[0]}` ended with exit code {code} (see above)")
    if heard:
        raise KeyboardInterrupt


def _summary(scores: list[dict[str, Any]]) -> None:
    """Joint accuracy before and after training, beside what chance and the renderer give."""
    named = {
        "untrained model": "before training",
        "model": "after training",
        "model, shuffled captions": "chance (captions shuffled)",
        "renderer": "the renderer itself",
    }
    rows = [
        [named[s["row"]], s["split"], f"{s['value']:.1%} [{s['low']:.1%}, {s['high']:.1%}]", s["n"]]
        for s in sorted(scores, key=lambda s: list(named).index(s["row"]) if s["row"] in named else len(named))
        if s["metric"] == "joint accuracy" and s["row"] in named
    ]
    print()
    headers = ["videos by", "split", "shape, colour and motion all right", "n"]
    print_table(headers, rows, "Does it follow its prompts? (95 % intervals)")
