"""The hash under which the checker is frozen. A table of scores prints it, so that its reader knows the ruler."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

from reelwright.shapes import world

FROZEN_HASH = "9e27b8054bd06375cee0ba06ff51177e72a9a74b679889f767e98d95c0603ab0"

CHECKER_SOURCES = ("checker.py", "checker_matte.py", "checker_templates.py", "geometry.py", "colour.py")
CHECKER_CONSTANTS = ("SHAPES", "COLOURS", "DIRECTIONS", "RADIUS", "TRAVEL", "GROWTH", "TURN", "REGIONS")


def checker_hash() -> str:
    """sha256 of the checker's source text and of the world's constants that it reads, whatever the line endings."""
    digest = hashlib.sha256()
    for name in CHECKER_SOURCES:
        text = files("reelwright.shapes").joinpath(name).read_text(encoding="utf-8")
        digest.update(f"{name}\n{text.replace(chr(13), '')}\n".encode())
    for name in CHECKER_CONSTANTS:
        digest.update(f"{name} = {json.dumps(getattr(world, name))}\n".encode())
    return digest.hexdigest()
