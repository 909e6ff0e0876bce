"""By how much a LoRA's file wants its matrices multiplied, where it does not say so with an `alpha` of every layer.

diffusers keeps peft's settings in the file's metadata, `lora_adapter_metadata` (diffusers 0.42, loaders/lora_base.py),
peft itself in an `adapter_config.json` beside its `adapter_model.safetensors`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reelwright.types import UserError

METADATA = "lora_adapter_metadata"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_LETTERS = 1_000_000
PARTS = ("transformer.", "unet.", "")  # before the settings' names: of a pipeline's part, or of a network by itself


@dataclass(frozen=True)
class DeclaredScale:
    """peft's rule: alpha / rank, or alpha / sqrt(rank), with an alpha of its own for the layers that a pattern fits."""

    alpha: float
    rslora: bool = False
    patterns: Mapping[str, float] = field(default_factory=dict)  # layers' names or their ends; ^ before a whole name

    def of(self, layer: str, rank: int) -> float:
        """For a layer by its name in diffusers' network, whose matrices are of this rank."""
        fitting = (value for name, value in self.patterns.items() if _names(name, layer))
        return next(fitting, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def _names(pattern: str, layer: str) -> bool:
    """peft's pattern, of which only names are read: a regular expression of a stranger's can take for ever."""
    name = pattern.removeprefix("^").removesuffix("$")
    return layer == name or (not pattern.startswith("^") and layer.endswith(f".{name}"))


def declared_scale(path: Path) -> DeclaredScale | None:
    """What a file declares; None where it declares nothing: alpha = rank. UserError where it is not readable."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
        beside = path.with_name(PEFT_CONFIG)
        if text is None and path.name == PEFT_WEIGHTS and beside.is_file():
            with beside.open(encoding="utf-8") as settings:
                text = settings.read(MAX_LETTERS + 1)
        if text is not None and len(text) > MAX_LETTERS:
            raise ValueError(f"longer than {MAX_LETTERS:,} letters")
        return None if text is None else _parse(json.loads(text))
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: what it says of its alpha cannot be read ({error}); save the LoRA again, or take the settings "
            f"({METADATA}, {PEFT_CONFIG}) away if they are not its own"
        ) from None


def _parse(settings: Mapping[str, Any]) -> DeclaredScale | None:
    """ValueError or TypeError where a value is not what peft writes."""
    for part in PARTS:
        if f"{part}lora_alpha" not in settings:
            continue
        alpha = float(settings[f"{part}lora_alpha"])
        patterns = {end: float(value) for end, value in dict(settings.get(f"{part}alpha_pattern") or {}).items()}
        if not all(math.isfinite(value) for value in (alpha, *patterns.values())):
            raise ValueError(f"alpha = {alpha}, {patterns}")
        if strange := [name for name in patterns if not re.fullmatch(r"\^?[\w.]+\$?", name)]:
            raise ValueError(f"alpha_pattern {strange[0]!r} is no name of a layer")
        return DeclaredScale(alpha, bool(settings.get(f"{part}use_rslora")), patterns)
    return None
