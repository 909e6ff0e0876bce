"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reelwright.cli.app import app
from reelwright.cli.options import Overrides, RecipePath
from reelwright.console import Progress
from reelwright.signals import INTERRUPTED


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    fork: Annotated[Path | None, typer.Option(help="go on from this run's weights in a new run directory")] = None,
) -> None:
    """Recipe -> run directory. Run it again: it resumes."""
    from reelwright.recipe import Recipe
    from reelwright.resume import fork_run
    from reelwright.train import train as run_train

    loaded = Recipe.load(recipe, overrides or [])
    if fork is not None:
        loaded = fork_run(loaded, fork)
    with Progress() as progress:
        outcome = run_train(
            loaded,
            on_step=lambda step, total, figures: progress("training", step, total, f"loss {figures['loss']:.4f}"),
            on_prepare=progress,
            say=progress.say,
        )
    if outcome.interrupted:
        raise SystemExit(INTERRUPTED)  # what is kept was said when it was saved
