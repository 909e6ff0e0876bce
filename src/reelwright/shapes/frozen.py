"""The hashes under which the checker is frozen. A table of scores prints its own, so that its reader knows the ruler.

What reads one object is the ruler of s1 and s1-hard. The other tracks' readers are built on it and have hashes of their
own: a change to them leaves every table of s1 as it is.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

from reelwright.shapes import world

FROZEN_HASHES = {  # by kind of track
    "one": "9e27b8054bd06375cee0ba06ff51177e72a9a74b679889f767e98d95c0603ab0",
    "two": "204710639dac09c5ed08b02f5e3bcbdbb9db9cbc90bfe410bc02c8e449502dc4",
    "change": "7cb5f44371e42bd882d45f4a36ef7c1a00d86ffcfa8b3a299439fc6983578b2f",
    "graded": "86b5be2cb7efa23da175db3aa8853f3b2f6f3fbeadc6aa313e175db441504184",
    "named": "bafbd372ed5183ff367428e75d8f6b70cca87aab558e97c4b0f1024511d9162c",
}

CHECKER_SOURCES = ("checker.py", "checker_matte.py", "checker_templates.py", "geometry.py", "colour.py")
CHECKER_CONSTANTS = ("SHAPES", "COLOURS", "DIRECTIONS", "RADIUS", "TRAVEL", "GROWTH", "TURN", "REGIONS")
ADDED_SOURCES = {
    "two": ("checker_background.py", "checker_objects.py"),
    "change": ("checker_background.py", "checker_changes.py"),
    "graded": ("checker_words.py",),
    "named": ("checker_words.py",),
}
ADDED_CONSTANTS = {
    "graded": ("GRADED_RADIUS", "GRADED_TRAVEL", "GRADED_GROWTH", "GRADED_TURN"),
    "named": ("LINE", "GRADED_RADIUS", "GRADED_TRAVEL", "GRADED_GROWTH", "GRADED_TURN"),
}


def checker_hash(track: str = "s1") -> str:
    """sha256 of the source text of a track's checker and of the world's constants that it reads, whatever the line
    endings."""
    kind = world.find_track(track).kind
    digest = hashlib.sha256()
    for name in (*CHECKER_SOURCES, *ADDED_SOURCES.get(kind, ())):
        text = files("reelwright.shapes").joinpath(name).read_text(encoding="utf-8")
        digest.update(f"{name}\n{text.replace(chr(13), '')}\n".encode())
    for name in (*CHECKER_CONSTANTS, *ADDED_CONSTANTS.get(kind, ())):
        digest.update(f"{name} = {json.dumps(getattr(world, name))}\n".encode())
    return digest.hexdigest()
