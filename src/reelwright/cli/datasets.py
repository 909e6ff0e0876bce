"""Commands on data: shapes, inspect, prepare."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from reelwright.cli.app import app
from reelwright.cli.options import JsonFlag, Overrides, RecipePath
from reelwright.console import Progress


@app.command()
def shapes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the clips")],
    clips: Annotated[int, typer.Option(min=1, help="number of clips")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same bytes")] = 0,
    track: Annotated[str, typer.Option(help="s1, or s1-hard with more shapes and backgrounds")] = "s1",
    frames: Annotated[int, typer.Option(min=2)] = 16,
    width: Annotated[int, typer.Option(min=16)] = 64,
    height: Annotated[int, typer.Option(min=16)] = 64,
    fps: Annotated[float, typer.Option(min=0.1)] = 8.0,
) -> None:
    """Synthetic captioned clips of moving shapes, as mp4 files with captions.json."""
    from reelwright.shapes.files import write_collection
    from reelwright.types import Size
    from reelwright.video.write import write_video

    with Progress() as progress:
        write_collection(
            out, clips, seed, track, Size(frames, height, width), fps, write_video,
            progress=lambda done, total: progress("rendering", done, total),
        )  # fmt: skip
    print(f"{clips} clips in {out / 'videos'}, captions in {out / 'captions.json'}, states in {out / 'scenes.json'}")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="a folder of captioned clips, or a recipe (YAML)")],
    overrides: Overrides = None,
    html: Annotated[Path | None, typer.Option(help="write a page with thumbnails here")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What would be used and dropped, and why. Nothing is written but the page."""
    from reelwright.inspect import data_config, inspect_data, write_page

    with Progress(quiet=as_json) as progress:
        config = data_config(data, overrides or [])
        inspection = inspect_data(config, progress)
        if html:
            write_page(inspection, config.fps, html, progress)
    if as_json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        for line in inspection.table():
            print(line)
    if html:
        print(f"page: {html}", file=sys.stderr)


@app.command()
def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    verify: Annotated[bool, typer.Option("--verify", help="re-read and re-hash every source file")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="fit codec and tokenizer anew on today's data")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Data -> cache. Run it again: only what changed is done."""
    from reelwright.prepare import prepare as run_prepare
    from reelwright.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or [])
    with Progress(quiet=as_json) as progress:
        summary = run_prepare(loaded, progress, verify=verify, refit=refit)
    if as_json:
        print(json.dumps(summary.to_json(), indent=1))
    else:
        for line in summary.lines():
            print(line)
