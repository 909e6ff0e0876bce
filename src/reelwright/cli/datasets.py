"""Commands on data: shapes, inspect, prepare."""

from __future__ import annotations

import gc
import json
import os
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
    clips: Annotated[int | None, typer.Option(min=1, help="number of clips: 1000, of d2 its three")] = None,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same bytes")] = 0,
    track: Annotated[
        str,
        typer.Option(
            help="s1: one object; s1-hard: more shapes and backgrounds; s2: two objects; s3: a change midway; "
            "graded: more words for speed and size; d2: three named clips"
        ),
    ] = "s1",
    coverage: Annotated[
        float | None, typer.Option(help="train on this share of all combinations, such as 0.25; at most 0.9")
    ] = None,
    captions: Annotated[
        int, typer.Option(min=1, help="of each clip at most, each of which may say other things of it")
    ] = 1,
    frames: Annotated[int, typer.Option(min=2, help="of each clip")] = 16,
    width: Annotated[int, typer.Option(min=16, help="in pixels")] = 64,
    height: Annotated[int, typer.Option(min=16, help="in pixels")] = 64,
    fps: Annotated[float, typer.Option(min=0.1, help="frames a second")] = 8.0,
) -> None:
    """Synthetic captioned clips of moving shapes, as mp4 files with captions.json (of d2 metadata.json)."""
    from reelwright.shapes.files import SCENES_FILE, VIDEOS_FOLDER, captions_file, write_collection
    from reelwright.shapes.named import NAMED_CLIPS
    from reelwright.types import Size
    from reelwright.video.write import write_video

    count = clips or (len(NAMED_CLIPS) if track == "d2" else 1000)
    with Progress() as progress:
        write_collection(
            out, count, seed, track, Size(frames, height, width), fps, write_video,
            progress=lambda done, total: progress("rendering", done, total), coverage=coverage, captions=captions,
        )  # fmt: skip
    captions_path = out / captions_file(track)
    print(f"{count} clips in {out / VIDEOS_FOLDER}, captions in {captions_path}, states in {out / SCENES_FILE}")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="a folder of captioned clips, or a recipe (YAML)")],
    overrides: Overrides = None,
    html: Annotated[Path | None, typer.Option(help="write a page with thumbnails here")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What would be used and dropped, and why. Nothing is written but the page."""
    from reelwright.inspect import inspect_data

    with Progress(quiet=as_json) as progress:
        inspection = inspect_data(data, overrides or [], progress, page=html)
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
    verify: Annotated[
        bool, typer.Option("--verify", help="read every source file and every stored item again; mend what is damaged")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="fit codec and tokenizer anew on today's data")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray for a collection beyond one machine")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster; else Ray is started here")] = None,
    workers: Annotated[int | None, typer.Option(help="decoding processes; else by the number of processors")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Data -> cache. Run it again: only what changed is done.

    engine=ray, address=... and workers=N may stand among the settings too: they say where the work is done.
    """
    # Read when torch is loaded: its idle threads soon sleep and leave the processors to decoding. Not at once, as with
    # OMP_WAIT_POLICY=PASSIVE: a codec in training, whose products are short, takes twice as long then.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from reelwright.prepare import prepare as run_prepare
    from reelwright.prepare.engine import parse_engine
    from reelwright.prepare.processes import is_first
    from reelwright.prepare.summary import paced
    from reelwright.recipe import Recipe

    gc.freeze()  # what importing made stays: looking through it again and again takes a tenth of a large collection
    settings, chosen = parse_engine(overrides or [], engine, address, workers)
    loaded = Recipe.load(recipe, settings)
    with Progress(quiet=as_json or not is_first()) as progress:
        summary = run_prepare(loaded, paced(progress), verify=verify, refit=refit, engine=chosen)
    if not is_first():
        return
    if as_json:
        print(json.dumps(summary.to_json(), indent=1))
    else:
        for line in summary.lines():
            print(line)
