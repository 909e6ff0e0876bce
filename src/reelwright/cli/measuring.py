"""Commands that measure: evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reelwright.cli.app import app
from reelwright.cli.options import (
    CheckpointOption,
    DeviceOption,
    GuidanceOption,
    PrecisionOption,
    RawFlag,
    SamplerOption,
    SeedOption,
    StepsOption,
)
from reelwright.console import Progress, print_table


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL|FOLDER", help="a model, or a folder of captioned videos")],
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="of a model that was moved, where its data is: data.path=... cache_dir=..."
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="comma-separated: shapes, memorisation, nearest, clip, temporal, dynamic, fvd, heldout, speed; "
            "'auto' takes what fits the data and needs no foreign network"
        ),
    ] = "auto",
    prompts: Annotated[int, typer.Option(min=2, help="videos, a split: 256 quick, 1024 to publish")] = 256,
    split: Annotated[list[str] | None, typer.Option(help="splits of the shapes benchmark; all by default")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    sampler: SamplerOption = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP's directory or hub id; ViT-B/32 of OpenAI for the clip score by default")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="network of the Frechet distance: i3d:PATH, clip:MODEL or videomae:MODEL")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="real captioned clips to hold a FOLDER against; a model has its own")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    checkpoint: CheckpointOption = None,
    raw: RawFlag = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the scores here as well")] = None,
) -> None:
    """Scores with intervals and control rows: a table, JSON, contact sheets, and the run's report page."""
    from reelwright.evaluate import Settings, run_evaluate
    from reelwright.generate import Compute

    settings = Settings(
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        prompts=prompts,
        splits=tuple(split or ()),
        seed=seed,
        sampling={"steps": steps, "guidance": guidance, "sampler": sampler},
        clip=clip,
        features=features,
        real=real,
        places=tuple(places or ()),
    )
    compute = Compute.resolve(device, precision)
    with Progress() as progress:
        result = run_evaluate(target, settings, compute, checkpoint, raw, progress)
    for title, headers, rows in result.tables:
        print_table(headers, rows, title)
        print()
    for note in result.notes:
        print(note)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False), encoding="utf-8")
        print(f"scores: {json_path}")
