"""What an export says of its weights: the data they learned from, what was measured on them, and the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelwright.config import flatten, to_yaml
from reelwright.loading import StoredModel, class_of, is_frozen
from reelwright.models.exported import (
    INDEX,
    NETWORKS,
    PARTS,
    PIPELINE_INDEX,
    RECIPE,
    Contents,
    DataSummary,
    read_index,
)
from reelwright.models.foreign import HUB_ID
from reelwright.prepare import Prepared, open_prepared
from reelwright.report.model_card import model_card
from reelwright.run import RunDirectory
from reelwright.types import UserError

FINAL = "final"  # in a run's checkpoints/


@dataclass(frozen=True)
class Description:
    """`data` is None where it is not there to be counted any more."""

    data: DataSummary | None
    scores: tuple[dict[str, Any], ...]


def summarise(prepared: Prepared) -> DataSummary:
    training, validation = prepared.training.samples.values(), prepared.validation.samples.values()
    return DataSummary(
        clips=len({sample.clip for sample in training}),
        samples=len(training),
        captions=len({caption for sample in training for caption in sample.captions}),
        held_out_clips=len({sample.clip for sample in validation}),
        sha256=prepared.data_sha256,
    )


def _run_of(stored: StoredModel) -> RunDirectory | None:
    path = Path(stored.path).resolve()
    run = RunDirectory(path.parent.parent)
    return run if path.parent.name == run.checkpoints.name and run.exists() else None


def find_data(stored: StoredModel) -> DataSummary | None:
    """From an export itself, else from the cache, else from the run's final model; of these very samples alone."""
    wanted = stored.origin.data_sha256
    if stored.data is not None:
        return stored.data
    if stored.recipe.cache_dir.is_dir():
        try:
            prepared = open_prepared(stored.recipe)
            if prepared.data_sha256 == wanted:
                return summarise(prepared)
        except UserError:  # prepared for another recipe, or damaged: then it is not counted
            pass
    run = _run_of(stored)
    if run is not None and (final := run.checkpoints / FINAL / INDEX).is_file():
        try:
            index = read_index(final.read_text(encoding="utf-8"), str(final))
        except (UserError, ValueError):
            return None
        if index.data is not None and index.data.sha256 == wanted:
            return index.data
    return None


def find_scores(stored: StoredModel) -> tuple[dict[str, Any], ...]:
    """What was measured on these very weights, by `evaluate` and while they were trained."""
    run = _run_of(stored)
    if stored.scores or run is None:
        return stored.scores
    origin = stored.origin
    rows, model = run.read_scores()
    rows = rows if model.get("sha256") == origin.weights_sha256 else []
    measured_on = "averaged" if stored.recipe.train.ema is not None else "last"
    held_out = [r for r in run.read_metrics() if r.get("step") == origin.step and "heldout_loss" in r]
    if held_out and origin.weights == measured_on:
        figures = held_out[-1]
        rows.append(
            {
                "row": "model", "split": figures["heldout_split"], "metric": "loss at fixed noise, while training",
                "value": figures["heldout_loss"], "low": figures["heldout_low"], "high": figures["heldout_high"],
                "n": figures["heldout_clips"],
            }
        )  # fmt: skip
    return tuple(rows)


def write_card(stored: StoredModel, contents: Contents, described: Description) -> str:
    """The README.md."""
    parts = []
    for part in PARTS:
        folders = (*NETWORKS, part) if part == "denoiser" else (part,)
        held = {name: tensors for name, tensors in contents.tensors.items() if name.partition("/")[0] in folders}
        tensors = [tensor for group in held.values() for tensor in group.values()]
        count, size = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
        where = next(iter(held), None) or f"not copied: {_origin_of(stored, part)}"
        parts.append((part, class_of(stored.recipe, part)[1], count, size, where))
    return model_card(_facts(stored, described, parts, INDEX))


def write_pipeline_card(
    stored: StoredModel, described: Description, parts: Sequence[Sequence[Any]], terms: dict[str, Any]
) -> str:
    """The README.md of a pipeline, whose `parts` are its components; `terms`: what the base's card says of itself."""
    model: Any = stored.recipe.model
    if not Path(model.model).exists() and HUB_ID.fullmatch(model.model):
        terms = {**terms, "base_model": model.model}
    pipeline = {
        "base": model.model, "terms": terms, "pictures": model.pictures is not None,
        "lora": stored.recipe.train.lora is not None,
    }  # fmt: skip
    return model_card({**_facts(stored, described, parts, PIPELINE_INDEX), "pipeline": pipeline})


def _facts(stored: StoredModel, described: Description, parts: Sequence[Sequence[Any]], index: str) -> dict[str, Any]:
    trained = [tensor for part in ("denoiser", "text") for tensor in stored.tensors.get(part, {}).values()]
    recipe = stored.recipe.plain()
    return {
        "name": stored.recipe.run_dir.name,
        "recipe": recipe,
        "recipe_text": to_yaml(recipe),
        "parameters": sum(tensor.numel() for tensor in trained),
        "parts": parts,
        "origin": stored.origin.plain(),
        "data": described.data.plain() if described.data else None,
        "scores": described.scores,
        "index": index,
        "pipeline": None,
    }


def _origin_of(stored: StoredModel, part: str) -> str:
    """Where a part lies that is not in the export."""
    return str(stored.recipe.plain()[part].get("model") or stored.recipe.train.start_from)


def notes_of(stored: StoredModel, described: Description) -> list[str]:
    """What whoever exports should know before it is shared."""
    notes = list(stored.warnings)
    if described.data is None:
        notes.append("the prepared data is not in its cache any more: the card does not count the clips")
    if not described.scores:
        notes.append("nothing was measured on these weights; `reelwright evaluate` before exporting fills the card")
    for part in PARTS:
        if is_frozen(stored.recipe, part):
            notes.append(f"the {part} was copied in; its own licence holds for it")
    named = [key for key, value in flatten(stored.recipe.plain()).items() if str(value).startswith("/")]
    if named:
        notes.append(f"{RECIPE} names folders of this machine: {', '.join(named)}")
    return notes
