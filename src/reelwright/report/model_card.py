"""The README.md of an exported model: what it is, how to use it, what it learned from, how well, and where from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reelwright.report.scores import numbered_conditions

HEAD = """\
---
library_name: reelwright
pipeline_tag: text-to-video
---

"""


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown; the same facts give the same card.

    `facts`: name, recipe (plain), recipe_text, parameters (how many were trained), parts (rows of part, class, numbers,
    bytes, where it lies), origin, data (or None), scores.
    """
    recipe, origin = facts["recipe"], facts["origin"]
    data, sampling = recipe["data"], recipe["sampling"]
    weights = "the moving average of the weights" if origin["weights"] == "averaged" else "the last weights"
    lines = [
        f"# {facts['name']}",
        "",
        f"A text-to-video model trained with Reelwright {origin['versions'].get('reelwright', '')}: "
        f"{data['frames']} frames of {data['width']}x{data['height']} at {data['fps']:g} frames a second, "
        f"{facts['parameters']:,} trained parameters.",
        "",
        "## Use",
        "",
        '    reelwright generate THIS_FOLDER --prompt "..." --out video.mp4',
        "",
        f"Unless told otherwise it samples with {sampling['sampler']}, {sampling['steps']} steps and guidance "
        f"{sampling['guidance']:g}. It knows what its captions named and little else.",
        "",
        "## Parts",
        "",
        *_table(["part", "class", "numbers", "bytes", "where"], [[*row] for row in facts["parts"]]),
        "",
        "A part that was made elsewhere keeps its own licence.",
        "",
        "## Training data",
        "",
        _data_sentence(facts["data"]),
        "",
        "## Scores",
        "",
        *_scores(facts["scores"]),
        "",
        "## Provenance",
        "",
        f"- {weights} after {origin['step']:,} steps, {origin['seconds'] / 60:.1f} minutes of training, seed "
        f"{recipe['seed']}",
        f"- sha256 of the weights: {origin['weights_sha256']}",
        f"- sha256 of the training samples: {origin['data_sha256'] or 'not recorded'}",
        "- trained with " + ", ".join(f"{name} {version}" for name, version in sorted(origin["versions"].items())),
        "",
        "## Recipe",
        "",
        *("    " + line for line in facts["recipe_text"].splitlines()),
    ]
    return HEAD + "\n".join(lines) + "\n"


def _data_sentence(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "Not counted: the prepared data was no longer there when this was exported."
    return (
        f"{data['clips']:,} clips ({data['samples']:,} samples) with {data['captions']:,} different captions; "
        f"{data['held_out_clips']:,} more clips held out."
    )


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["None has been measured on these weights."]
    numbers, conditions = numbered_conditions(rows)
    cells = []
    for row, number in zip(rows, numbers, strict=True):
        bounds = (row.get("low"), row.get("high"))
        interval = "" if None in bounds else f"[{bounds[0]:.4g}, {bounds[1]:.4g}]"
        value = row.get("value")
        shown = f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
        named = (row.get("row", ""), row.get("split", ""), row.get("metric", ""))
        cells.append([*named, shown, interval, row.get("n"), number])
    table = _table(["row", "split", "metric", "value", "95 % interval", "n", "how"], cells)
    return [*table, *(line for n, text in enumerate(conditions, start=1) for line in ("", f"How {n}: {text}."))]


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        plain = ["" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in plain) + " |"

    return [line(headers), "|" + "---|" * len(headers), *(line(row) for row in rows)]
