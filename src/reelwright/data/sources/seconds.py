"""Times in annotation files: seconds, or hours:minutes:seconds, alone or in lists written as text."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

MAX_LITERAL_CHARACTERS = 1 << 20
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")


def parse_seconds(value: Any) -> float:
    """12.5, "12.5", "1:02.5" or "0:01:02.5" -> seconds, finite and not negative. ValueError says why not."""
    seconds = math.nan
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        if clock:
            hours, minutes, rest = clock.groups()
            seconds = 3600 * float(hours or 0) + 60 * float(minutes) + float(rest)
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            seconds = float(value)
    except (ValueError, OverflowError):
        pass
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{value!r:.60} is no time; it is written in seconds or as hours:minutes:seconds")
    return seconds


def parse_span(value: Any) -> tuple[float, float]:
    """[start, end] -> seconds, the end after the start. ValueError says why not."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{value!r:.60} is not a start and an end")
    start, end = parse_seconds(value[0]), parse_seconds(value[1])
    if end <= start:
        raise ValueError(f"it ends at {end:g} s, not after its start at {start:g} s")
    return start, end


def parse_spans(value: Any) -> list[Any]:
    """A [start, end], or a list of them, also written as text -> a list of pairs, each for `parse_span`."""
    value = parse_list(value)
    if value and not isinstance(value[0], list | tuple):
        return [value]
    return value


def parse_list(value: Any) -> list[Any]:
    """A list, or the text of one in JSON's or Python's notation. Nothing of the text is run. ValueError: it is none."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        raise ValueError(f"{value!r:.60} is not a list")
    if len(value) > MAX_LITERAL_CHARACTERS:
        raise ValueError(f"a list of {len(value)} characters is longer than {MAX_LITERAL_CHARACTERS}")
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(parsed, list):
            return parsed
    raise ValueError(f"{value!r:.60} is not a list that can be read")
