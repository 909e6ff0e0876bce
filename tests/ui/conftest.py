"""A workspace with everything in it: clips, a recipe, a trained run, a video."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reelwright.ui.jobs import Job, JobQueue
from reelwright.ui.workspace import Workspace
from reelwright.video.write import write_video

WAIT_SECONDS = 120.0


@pytest.fixture
def full_workspace(tmp_path: Path, trained_run: Path, shapes_clips: Path, write_recipe) -> Workspace:
    """runs/first (8 steps), data, recipe.yaml (trains runs/new for a long time), clip.mp4."""
    root = tmp_path / "root"
    shutil.copytree(trained_run, root / "runs" / "first")
    shutil.copytree(shapes_clips, root / "data")
    settings = ("run_dir=runs/new", "cache_dir=cache", "data.path=data", "train.steps=100000", "train.save_every=100",
                "train.evaluate_every=0", "train.log_every=1")  # fmt: skip
    shutil.move(write_recipe(*settings, folder=tmp_path / "made"), root / "recipe.yaml")
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    write_video(root / "clip.mp4", frames, 8)
    return Workspace(root)


Wait = Callable[..., Job]


@pytest.fixture
def wait() -> Wait:
    """`wait(queue, id)` until the job has ended, or `until(job)` holds; the job. Fails after two minutes."""

    def waiting(queue: JobQueue, id: str, until: Callable[[Job], bool] = lambda job: not job.active) -> Job:
        deadline = time.monotonic() + WAIT_SECONDS
        while not until(job := queue.get(id)):
            assert job.active, f"ended as {job.state}: {job.error}"
            assert time.monotonic() < deadline, f"still {job}"
            time.sleep(0.02)
        return job

    return waiting
