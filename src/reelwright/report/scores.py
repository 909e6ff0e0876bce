"""How scores were measured, in words: rows of equal conditions share a number, and the number a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reelwright.run import score_conditions


def numbered_conditions(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int | None], list[str]]:
    """The number of each row's conditions (None: it has none), and the conditions in words, those of number 1 first."""
    texts = [", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in score_conditions(row).items())
             for row in rows]  # fmt: skip
    different = [text for text in dict.fromkeys(texts) if text]
    return [different.index(text) + 1 if text else None for text in texts], different


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
