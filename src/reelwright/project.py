"""`reelwright init`: a folder in which a person's own clips become a model."""

from __future__ import annotations

import json
from pathlib import Path

from reelwright.types import UsageError

RECIPE = """\
# Trains a small text-to-video model on the clips of data/videos/ (captions in data/captions.json).
#   reelwright inspect recipe.yaml           what would be used and dropped, and why
#   reelwright prepare recipe.yaml           data -> cache
#   reelwright train recipe.yaml             again: resumes
#   reelwright generate checkpoints/first --prompt "..." --out first.mp4
#   reelwright evaluate checkpoints/first
run_dir: checkpoints/first
cache_dir: cache
seed: 0
data:
  path: data
  frames: 16          # of each training clip
  fps: 8
  width: 64
  height: 64
  validation: 0.1     # of the source videos, held out
train:
  steps: 2000
  batch_size: 16      # samples per optimizer step
  learning_rate: 5.0e-4
  save_every: 250
  evaluate_every: 250
  sample_every: 500
"""

REQUIREMENTS = "reelwright\n"


def create_project(folder: Path) -> list[str]:
    """Make the folder; UsageError where it holds anything already. Returns what to do next, line by line."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not an empty folder; choose another name")
    (folder / "data" / "videos").mkdir(parents=True)
    captions = {"video1.mp4": "what happens in video1.mp4", "video2.mp4": "what happens in video2.mp4"}
    (folder / "data" / "captions.json").write_text(json.dumps(captions, indent=2) + "\n", encoding="utf-8")
    (folder / "checkpoints").mkdir()
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    return [
        f"{folder}: made. Next:",
        f"  1. put your clips into {folder / 'data' / 'videos'}",
        f"  2. write a caption for each into {folder / 'data' / 'captions.json'}",
        f"  3. cd {folder} && reelwright inspect recipe.yaml",
    ]
