"""The README.md of an exported model: what it is, how to use it, what it learned from, how well, and where from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reelwright.config import to_yaml
from reelwright.report.scores import numbered_conditions
from reelwright.run import is_number

# What the names of metrics begin with, in the order a reader looks for them; others follow.
HEADLINES = (
    "joint accuracy", "held-out loss", "fixed-noise loss", "loss at fixed noise", "own clip is nearest", "PSNR",
    "CLIP cosine", "Frechet", "clips that move", "dynamic degree", "frame consistency", "warping error",
    "nearer than 95 %", "generated frames per second",
)  # fmt: skip
# What only says more of those: it stays in the index.
DETAILS = (
    "still joint accuracy", "abstained", "valid", "shape accuracy", "colour accuracy", "motion accuracy",
    "binding deficit", "direction error", "path residual", "diversity of", "CLIPScore", "change not explained",
    "median distance", "videos with a readable object",
)  # fmt: skip
# The rows a model's figure is read beside, the first two that were measured.
BESIDE = (
    "chance", "model, shuffled captions", "real clips", "real clips against real clips", "renderer", "untrained model",
)  # fmt: skip


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown; the same facts give the same card.

    `facts`: name, recipe (plain), recipe_text, parameters (how many were trained), parts (rows of part, class, numbers,
    bytes, where it lies), origin, data (or None), scores (all of them; the card shows what a reader looks for), index
    (the file beside the card that holds the rest), pipeline (None, or of one that diffusers runs: base, its name;
    terms, what the base's card says of its licence; pictures, whether it starts from one; lora, whether adapters were
    trained).
    """
    recipe, origin = facts["recipe"], facts["origin"]
    head, told = _pipeline_use(facts) if facts["pipeline"] else _use(facts)
    weights = "the moving average of the weights" if origin["weights"] == "averaged" else "the last weights"
    lines = [
        "---",
        *to_yaml(head).splitlines(),
        "---",
        "",
        f"# {facts['name']}",
        "",
        *told,
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
        *_scores(facts["scores"], facts["index"]),
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
    return "\n".join(lines) + "\n"


def _use(facts: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The fields at the card's head; what the model is and how it is used."""
    return {"library_name": "reelwright", "pipeline_tag": "text-to-video"}, [
        f"A text-to-video model trained with {_maker(facts)}: {_videos(facts)}, "
        f"{facts['parameters']:,} trained parameters.",
        "",
        "## Use",
        "",
        '    reelwright generate THIS_FOLDER --prompt "..." --out video.mp4',
        "",
        f"Unless told otherwise it samples with {_sampling(facts)}. It knows what its captions named and little else.",
    ]


def _pipeline_use(facts: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The same of a base that was trained further, for diffusers in the first place."""
    pipeline, data = facts["pipeline"], facts["recipe"]["data"]
    start = "start.png" if pipeline["pictures"] else "..."
    given = f'load_image("{start}")' if pipeline["pictures"] else f'"{start}"'
    task = "image-to-video" if pipeline["pictures"] else "text-to-video"
    rest = ", in adapters that were added to its weights" if pipeline["lora"] else ""
    helpers = "export_to_video, load_image" if pipeline["pictures"] else "export_to_video"
    head = {"library_name": "diffusers", "pipeline_tag": task, **pipeline["terms"]}
    return head, [
        f"The {task} model `{pipeline['base']}`, trained further with {_maker(facts)} on {_videos(facts)}: "
        f"{facts['parameters']:,} trained parameters{rest}.",
        "",
        "## Use",
        "",
        "    from diffusers import DiffusionPipeline",
        f"    from diffusers.utils import {helpers}",
        "",
        '    pipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER")',
        f"    video = pipeline({given}, num_frames={data['frames']}, height={data['height']}, width={data['width']})",
        f'    export_to_video(video.frames[0], "video.mp4", fps={max(1, round(data["fps"]))})',
        "",
        "There the scheduler is the base's, and steps and guidance are as the pipeline has them unless they are given. "
        f"Reelwright takes the folder too, and samples with {_sampling(facts)}:",
        "",
        f'    reelwright generate THIS_FOLDER {"--image" if pipeline["pictures"] else "--prompt"} "{start}" '
        "--out video.mp4",
    ]


def _maker(facts: Mapping[str, Any]) -> str:
    return f"Reelwright {facts['origin']['versions'].get('reelwright', '')}"


def _videos(facts: Mapping[str, Any]) -> str:
    data = facts["recipe"]["data"]
    return f"{data['frames']} frames of {data['width']}x{data['height']} at {data['fps']:g} frames a second"


def _sampling(facts: Mapping[str, Any]) -> str:
    sampling = facts["recipe"]["sampling"]
    return f"{sampling['sampler']}, {sampling['steps']} steps and guidance {sampling['guidance']:g}"


def _data_sentence(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "Not counted: the prepared data was no longer there when this was exported."
    return (
        f"{data['clips']:,} clips ({data['samples']:,} samples) with {data['captions']:,} different captions; "
        f"{data['held_out_clips']:,} more clips held out."
    )


def _scores(rows: Sequence[Mapping[str, Any]], index: str) -> list[str]:
    """A line a metric and split: the model's mean with its interval, and what it is read beside."""
    if not rows:
        return ["None has been measured on these weights."]
    shown = headline_rows(rows)
    numbers, conditions = numbered_conditions(shown)
    cells = []
    for row, number in zip(shown, numbers, strict=True):
        bounds = (row.get("low"), row.get("high"))
        interval = f"[{bounds[0]:.4g}, {bounds[1]:.4g}]" if all(is_number(end) for end in bounds) else ""
        named = (row["metric"], row.get("split", ""), _value(row), interval)
        cells.append([*named, row.get("n"), _beside(row, rows), number])
    table = _table(["metric", "of", "value", "95 % interval", "n", "beside", "how"], cells)
    told = [line for n, text in enumerate(conditions, start=1) for line in ("", f"How {n}: {text}.")]
    if more := len(rows) - len(shown):
        told += ["", f"{more} more rows, of single factors and of all controls: `scores` in [{index}]({index})."]
    return [*table, *told]


def headline_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The model's own rows that are no DETAILS, in the order of HEADLINES; of a distance the one of most videos."""
    chosen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        metric, place = str(row["metric"]), (str(row["metric"]), str(row.get("split") or ""))
        if row.get("row") != "model" or metric.startswith(DETAILS):
            continue
        if place not in chosen or (row.get("n") or 0) > (chosen[place].get("n") or 0):
            chosen[place] = row
    if any(metric.startswith("held-out loss") for metric, _ in chosen):  # the same, of the same weights
        chosen = {place: row for place, row in chosen.items() if not place[0].startswith("loss at fixed noise")}

    def rank(row: Mapping[str, Any]) -> int:
        metric = str(row["metric"])
        return next((n for n, name in enumerate(HEADLINES) if metric.startswith(name)), len(HEADLINES))

    return sorted(chosen.values(), key=rank)


def _beside(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures of at most two control rows of the same metric and split; of a distance, of as many videos."""
    alike = ("metric", "split", "n") if str(row["metric"]).startswith("Frechet") else ("metric", "split")
    found = {str(r["row"]): _value(r) for r in rows if all(r.get(key) == row.get(key) for key in alike)}
    return ", ".join([f"{name} {found[name]}" for name in BESIDE if name in found][:2])


def _value(row: Mapping[str, Any]) -> str:
    value = row.get("value")
    return f"{value:.4g}" if is_number(value) else "not finite"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        plain = ["" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in plain) + " |"

    return [line(headers), "|" + "---|" * len(headers), *(line(row) for row in rows)]
