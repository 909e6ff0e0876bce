"""Commands that begin something: demo, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reelwright.cli.app import app


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="folder for clips, cache, run and report")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="training steps; more follow prompts better")] = None,
) -> None:
    """The whole chain on rendered clips, offline, in minutes; ends with a report page."""
    from reelwright.demo import run_demo

    run_demo(out, steps)


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="the new project's folder")]) -> None:
    """A project folder: data/videos/, a captions.json template, a recipe, requirements.txt."""
    from reelwright.project import create_project

    for line in create_project(folder):
        print(line)
