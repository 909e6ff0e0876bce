from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from reelwright.shapes.renderer import render
from reelwright.shapes.splits import prompts
from reelwright.shapes.world import Prompt
from reelwright.types import Size

SIZE = Size(16, 64, 64)
FPS = 8.0


@dataclass
class Rendered:
    prompts: list[Prompt]
    videos: list[np.ndarray]


@pytest.fixture(scope="session")
def rendered() -> Rendered:
    """264 headline prompts over three splits of the core track, each with its reference scene rendered."""
    asked = [p for split in ("in_distribution", "held_out_pairs", "held_out_triples") for p in prompts(split, 88, 1)]
    return Rendered(asked, [render(prompt.scene, SIZE, FPS) for prompt in asked])
