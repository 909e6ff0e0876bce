"""Commands that take a model out of its run: export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reelwright.cli.app import app
from reelwright.cli.options import CheckpointOption, JsonFlag, OverwriteFlag, RawFlag
from reelwright.console import Progress, print_error


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory, a checkpoint, or an earlier export")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder, or FILE.safetensors")],
    form: Annotated[str, typer.Option("--format", help="diffusers, safetensors, lora, comfyui or kohya")] = "diffusers",
    checkpoint: CheckpointOption = None,
    raw: RawFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """A run's model as a self-contained folder or as one file; `generate` takes both, wherever they lie."""
    from reelwright.export import export_model

    with Progress(quiet=as_json) as progress:
        exported = export_model(run, out, form, checkpoint, raw, progress, overwrite)
    if as_json:
        print(json.dumps(exported.to_json(), indent=1))
        return
    for note in exported.notes:
        print_error(note)
    print(
        f"{out}: step {exported.step}, {exported.weights} weights, {exported.num_bytes:,} bytes in "
        f"{len(exported.files)} file{'s' if len(exported.files) > 1 else ''}"
    )
