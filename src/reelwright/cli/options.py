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
SamplerOption = Annotated[str | None, typer.Option(help="ddpm, ddim, euler, heun, dpmpp_2m or unipc")]
OffloadFlag = Annotated[bool, typer.Option("--offload", help="keep on the device only the part at work")]
