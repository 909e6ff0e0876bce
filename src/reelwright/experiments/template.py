"""`reelwright experiment new`: a folder with a question, a recipe, clips of moving shapes, and a place for results."""

from __future__ import annotations

from pathlib import Path

from reelwright.experiments.spec import SPEC_FILE
from reelwright.shapes.files import write_collection
from reelwright.types import Size, UsageError
from reelwright.video.write import write_video

CLIPS = 96
SIZE = Size(8, 32, 32)
FPS = 8.0

SPEC = """\
# An experiment: one question, and the runs that answer it.
#   reelwright experiment FOLDER --dry-run    the runs, and what each changes
#   reelwright experiment FOLDER              runs them; again: goes on; ends with compare.html
#   reelwright compare FOLDER                 the page once more
question: Does the learning rate matter, and does the way the micro-batch is named?
base: base.yaml
paths_from: spec             # the recipe's data and cache lie in this folder
overrides: []                # of every run, such as train.steps=500
factors:                     # every level of one with every level of the others; the first level is the reference
  learning rate:             # named levels, each a list of settings
    none: [train.learning_rate=0]
    "0.001": [train.learning_rate=1.0e-3]
  train.micro_batch: [auto, 8]    # or a setting and its values; here two names of one thing, as the batch is 8
seeds: [0, 1]                # noise is judged between seeds: two show large differences only, five or more are better
evaluate: {metrics: [shapes], prompts: 8, splits: [in_distribution], steps: 4}
measure: auto                # the figure the answer is about: held-out loss where the runs share one
limits: {runs: 64, minutes_a_run: null, minutes: null}
"""

RECIPE = """\
# The recipe every run of the experiment starts from: tiny, seconds a run.
run_dir: runs/base           # the experiment gives every run its own
cache_dir: cache             # shared by all runs
seed: 0
data: {path: data, frames: 8, fps: 8, width: 32, height: 32, validation: 0.2}
codec: {type: pca, block: [4, 8, 8], channels: 24}
text: {type: native, vocab_size: 300, width: 32, depth: 1, length: 16}
model: {type: dit, width: 64, depth: 2, heads: 2}
objective: {schedule: flow, prediction: x0}
train:
  steps: 60
  batch_size: 8
  learning_rate: 1.0e-3
  warmup_steps: 5
  lr_schedule: constant
  ema: 0.9
  save_every: 20
  evaluate_every: 20
  sample_every: 0
  sample_prompts: 2
  log_every: 5
  tensorboard: false
sampling: {steps: 8}
"""

NOTES = """\
# {name}

Question, prediction and reasons go here before the runs; what was found, after them.

- spec: experiment.yaml, base recipe: base.yaml
- results: compare.html, experiment.json, runs/ (one run directory each), logs/
"""


def create_experiment(folder: Path) -> list[str]:
    """Make the folder; UsageError where it holds anything already. Returns what to do next, line by line."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not an empty folder; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    write_collection(folder / "data", CLIPS, 0, "s1", SIZE, FPS, write_video)
    for name, text in {"base.yaml": RECIPE, SPEC_FILE: SPEC, "notes.md": NOTES}.items():
        (folder / name).write_text(text.replace("{name}", folder.resolve().name), encoding="utf-8")
    return [
        f"{folder}: made, with {CLIPS} clips of moving shapes in {folder / 'data'}. It runs as it is:",
        f"  reelwright experiment {folder} --dry-run",
        f"  reelwright experiment {folder}",
        f"Then put your own question into {folder / SPEC_FILE} and your own settings into {folder / 'base.yaml'}",
    ]
