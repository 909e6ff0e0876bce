"""A tiny collection, a tiny recipe for it, one tiny trained run, and the command line called in this process."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TINY = """\
seed: 0
data: {frames: 8, fps: 8, width: 32, height: 32}
codec: {type: pca, block: [4, 8, 8], channels: 24}
text: {type: native, vocab_size: 300, width: 32, depth: 1, length: 16}
model: {type: dit, width: 32, depth: 2, heads: 2}
train:
  steps: 8
  batch_size: 4
  learning_rate: 2.0e-3
  warmup_steps: 2
  precision: fp32
  device: cpu
  ema: 0.9
  log_every: 2
  save_every: 4
  evaluate_every: 4
  sample_every: 0
  sample_prompts: 1
  tensorboard: false
sampling: {steps: 3}
"""


@dataclass(frozen=True)
class Output:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


RunCli = Callable[..., Output]
WriteRecipe = Callable[..., Path]


def write_tiny_recipe(folder: Path, data: Path, cache: Path, *overrides: str) -> Path:
    """folder/recipe.yaml: the tiny recipe for a collection, training in folder/run."""
    from reelwright.config import apply_override, parse_yaml, to_yaml

    values: dict[str, Any] = {"run_dir": str(folder / "run"), "cache_dir": str(cache), **parse_yaml(TINY, "tiny")}
    values["data"]["path"] = str(data)
    for override in overrides:
        apply_override(values, override)
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(values), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heeded() -> None:
    """As in a terminal, also where the tests run in the background, where a shell has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_run_a_process() -> Iterator[None]:
    """Accelerate keeps the first run's precision for the whole process; every test starts without it."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="session")
def shapes_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rendered clips, 8 frames of 32x32; not to be changed: copy it first."""
    from reelwright.shapes.files import write_collection
    from reelwright.types import Size
    from reelwright.video.write import write_video

    folder = tmp_path_factory.mktemp("collection") / "shapes"
    write_collection(folder, 24, 0, "s1", Size(8, 32, 32), 8.0, write_video)
    return folder


@pytest.fixture(scope="session")
def shapes_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for every tiny run that only reads it; what was prepared once is there for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def write_recipe(tmp_path: Path, shapes_clips: Path, shapes_cache: Path) -> WriteRecipe:
    """`write_recipe("train.steps=4", ..., folder=..., data=..., cache=...)` -> path of a tiny recipe."""

    def write(*overrides: str, folder: Path = tmp_path, data: Path = shapes_clips, cache: Path = shapes_cache) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return write_tiny_recipe(folder, data, cache, *overrides)

    return write


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, shapes_clips: Path, shapes_cache: Path) -> Path:
    """The run directory of a tiny model trained for 8 steps; checkpoints at 4 and 8. Not to be changed."""
    from reelwright.recipe import Recipe
    from reelwright.train import train

    folder = tmp_path_factory.mktemp("trained")
    recipe = Recipe.load(write_tiny_recipe(folder, shapes_clips, shapes_cache))
    return train(recipe, say=lambda _: None).run_dir


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """`run_cli("generate", run, "--prompt", "...")` calls the command line in this process."""

    def run(*arguments: object) -> Output:
        from reelwright.cli import main

        out, err = io.StringIO(), io.StringIO()
        before = sys.argv
        sys.argv = ["reelwright", *(str(argument) for argument in arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
                main()
        finally:
            sys.argv = before
        return Output(int(end.value.code or 0), out.getvalue(), err.getvalue())

    return run
