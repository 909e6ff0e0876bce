"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings over the recipe's")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe (YAML)")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")]
CheckpointOption = Annotated[str | None, typer.Option(help="of a run: a step number, or newest instead of the best")]
RawFlag = Annotated[bool, typer.Option("--raw", help="the last weights, not their moving average")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="replace what is there already")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="of the sampler; the run's own where not given")]
GuidanceOption = Annotated[
    float | None, typer.Option(min=0, help="how strongly prompts are followed, 1 plainly; the run's own")
]
SeedOption = Annotated[int, typer.Option(min=0, help="same seed, same numbers")]
SamplerOption = Annotated[str | None, typer.Option(help="ddpm, ddim, euler, heun, dpmpp_2m, dpmpp_2m_sde or unipc")]
OffloadOption = Annotated[
    str, typer.Option(help="none, model (only the part at work is on the device) or block (only two blocks of it)")
]
