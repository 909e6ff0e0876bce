"""A trained model -> files to keep, move and share: a self-contained directory, or one safetensors file.

Both hold the same (see `models.exported`), and the same checkpoint gives the same bytes. They are written to a
temporary sibling, synced, read back as `load_model` would, and renamed: what stands under the name is always whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reelwright.config import flatten, to_yaml
from reelwright.durable import sha256_of, sync
from reelwright.loading import StoredModel, class_of, is_frozen, open_model
from reelwright.models.exported import (
    CARD,
    FILES,
    FORMAT_VERSION,
    INDEX,
    METADATA_KEY,
    PARTS,
    RECIPE,
    TOKENIZER,
    Contents,
    DataSummary,
    FileEntry,
    ModelIndex,
    read_index,
    read_tensors,
    write_directory,
    write_file,
)
from reelwright.prepare import Prepared, open_prepared
from reelwright.recipe import Recipe
from reelwright.report.model_card import model_card
from reelwright.run import RunDirectory
from reelwright.types import UsageError, UserError

FORMATS = ("diffusers", "safetensors", "lora", "comfyui")
FINAL = "final"  # in a run's checkpoints/
ONE_SHARD = "1000GB"  # diffusers and transformers cut large weights into several files otherwise

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    format: str
    step: int
    weights: str
    weights_sha256: str
    num_bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "format": self.format, "step": self.step, "weights": self.weights,
            "weights_sha256": self.weights_sha256, "bytes": self.num_bytes, "files": list(self.files),
            "notes": list(self.notes),
        }  # fmt: skip


def export_model(
    model: str,
    out: Path,
    form: str = "diffusers",
    checkpoint: str | None = None,
    raw: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> Exported:
    """Write a run, one of its checkpoints, or an earlier export to `out` in one of FORMATS.

    Frozen parts (CLIP, T5, AutoencoderKL) are copied in. An earlier export at `out` is replaced; UsageError where
    anything else is there. UserError says how many bytes are needed and free where it cannot be written.
    """
    _check_format(model, form)
    target = out.expanduser().resolve()
    _check_target(target, out, form)
    with open_model(model, checkpoint, raw) as stored:
        data = _find_data(stored)
        scores, conditions = _find_scores(stored)
        described = _Description(data, scores, conditions)
        return _write(stored, target, form, described, copy_frozen=True, on_progress=on_progress)


def export_final(run: RunDirectory, prepared: Prepared) -> Path:
    """RUN/checkpoints/final: the model `load_model` takes the run for, as a directory ready to generate from.

    Left as it is where it already holds these weights. Frozen parts stay where the recipe found them: `export_model`
    copies them in.
    """
    target = run.checkpoints / FINAL
    with open_model(str(run.path)) as stored:
        try:
            with open_model(str(target)) as standing:
                if standing.origin == stored.origin:
                    return target
        except UserError:  # none, or a damaged one
            pass
        _check_target(target, target, "diffusers")
        scores, conditions = _find_scores(stored)
        data = summarise(prepared) if prepared.data_sha256 == stored.origin.data_sha256 else None
        described = _Description(data, scores, conditions)
        _write(stored, target, "diffusers", described, copy_frozen=False, on_progress=lambda *_: None)
    return target


def summarise(prepared: Prepared) -> DataSummary:
    training, validation = prepared.training.samples.values(), prepared.validation.samples.values()
    return DataSummary(
        clips=len({sample.clip for sample in training}),
        samples=len(training),
        captions=len({caption for sample in training for caption in sample.captions}),
        held_out_clips=len({sample.clip for sample in validation}),
        sha256=prepared.data_sha256,
    )


# -- what may be asked for


def _check_format(model: str, form: str) -> None:
    if form not in FORMATS:
        raise UsageError(f"--format {form}: not one of {', '.join(FORMATS)}")
    if form in ("lora", "comfyui"):
        raise UsageError(
            f"--format {form}: writes a LoRA, and '{model}' has none: all of its weights were trained; "
            "use --format diffusers or safetensors"
        )
    if Path(model).suffix in (".yaml", ".yml") and Path(model).is_file():
        raise UsageError(f"'{model}' is a recipe: it has no trained weights to export; give a run directory")


def _check_target(target: Path, out: Path, form: str) -> None:
    """UsageError where `out` does not fit the format, or holds anything that replacing it would lose."""
    single = form == "safetensors"
    if single != (target.suffix == ".safetensors"):
        rule = "one file: give OUT ending in .safetensors" if single else "a folder: give OUT without .safetensors"
        raise UsageError(f"{out}: --format {form} writes {rule}, or choose the other format")
    if not target.exists():
        return
    obstacle = _foreign_to_export(target, single)
    if obstacle:
        raise UsageError(f"{out}: {obstacle}; only an earlier export is replaced. Name another OUT, or move it away")


def _foreign_to_export(target: Path, single: bool) -> str:
    """What stands at `target` that is no export of ours; '' where nothing does."""
    if target.is_dir() == single:
        return f"a {'folder' if single else 'file'} of that name is there"
    if single:
        try:
            with safe_open(target, framework="pt") as file:
                return "" if METADATA_KEY in (file.metadata() or {}) else "a file that is no export is there"
        except (SafetensorError, OSError, ValueError):
            return "a file that is no export is there"
    present = [path for path in sorted(target.rglob("*")) if not path.is_dir() or path.is_symlink()]
    present = [path for path in present if path.name != ".DS_Store"]  # a file browser's, in any folder it has shown
    if not present:
        return ""
    if not (target / INDEX).is_file():
        return f"the folder is not empty ({present[0].name})"
    for path in present:
        name = path.relative_to(target).as_posix()
        if name != INDEX and name not in FILES:
            return f"the folder holds {name}, which is not of an export"
    try:
        index = read_index((target / INDEX).read_text(encoding="utf-8"), str(target / INDEX))
    except (UserError, OSError, ValueError):
        return f"its {INDEX} is not of an export, or damaged"
    card = index.files.get(CARD)
    if (target / CARD).is_file() and (card is None or sha256_of(target / CARD) != card.sha256):
        return f"its {CARD} was edited since"
    return ""


# -- what is known of the weights


@dataclass(frozen=True)
class _Description:
    data: DataSummary | None
    scores: tuple[dict[str, Any], ...]
    conditions: str


def _run_of(stored: StoredModel) -> RunDirectory | None:
    path = Path(stored.path).resolve()
    run = RunDirectory(path.parent.parent)
    return run if path.parent.name == run.checkpoints.name and run.exists() else None


def _find_data(stored: StoredModel) -> DataSummary | None:
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


def _find_scores(stored: StoredModel) -> tuple[tuple[dict[str, Any], ...], str]:
    """What was measured on these very weights, by `evaluate` and while they were trained; and how."""
    run = _run_of(stored)
    if stored.scores or run is None:
        return stored.scores, stored.conditions
    origin = stored.origin
    rows, conditions = run.read_scores()
    rows = [row for row in rows if row.get("model_sha256") == origin.weights_sha256[:12]]
    conditions = conditions if rows else ""
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
    return tuple(rows), conditions


# -- writing


def _write(
    stored: StoredModel, target: Path, form: str, described: _Description, copy_frozen: bool, on_progress: OnProgress
) -> Exported:
    temporary = target.with_name(f".writing-{target.name}")

    def index_of(files: dict[str, FileEntry]) -> ModelIndex:
        return ModelIndex(
            format_version=FORMAT_VERSION,
            **{part: class_of(stored.recipe, part) for part in PARTS},  # pyright: ignore[reportArgumentType]
            origin=stored.origin,
            data=described.data,
            scores=described.scores,
            conditions=described.conditions,
            files=files,
        )

    with _space(target, temporary) as scratch:
        on_progress("exporting", 0, 3)
        contents = _collect(stored, scratch, copy_frozen)
        on_progress("exporting", 1, 3)
        if form == "safetensors":
            write_file(temporary, contents, index_of)
        else:
            contents.texts[CARD] = _card(stored, contents, described)
            write_directory(temporary, contents, index_of)
        on_progress("exporting", 2, 3)
        with open_model(str(temporary)) as written:
            assert written.origin == stored.origin
        files = sorted(p for p in temporary.rglob("*") if p.is_file()) if temporary.is_dir() else [temporary]
        names = [p.relative_to(temporary).as_posix() if p != temporary else target.name for p in files]
        num_bytes = sum(path.stat().st_size for path in files)
        _replace(temporary, target)
        on_progress("exporting", 3, 3)
    origin = stored.origin
    return Exported(
        target, form, origin.step, origin.weights, origin.weights_sha256, num_bytes, tuple(names),
        tuple(_notes(stored, described)),
    )  # fmt: skip


def _notes(stored: StoredModel, described: _Description) -> list[str]:
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


@contextmanager
def _space(target: Path, temporary: Path) -> Iterator[Path]:
    """A scratch folder beside `target`, without anything a killed export left; cleared whatever happens."""
    scratch, replaced = _sibling(temporary, "parts"), _sibling(temporary, "replaced")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if replaced.exists() and not target.exists():  # killed between the two renames
            replaced.rename(target)
        _remove(temporary, scratch, replaced)
        scratch.mkdir()
        yield scratch
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors in its own
        free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else 0
        raise UserError(
            f"{target}: the model could not be written ({error}); {free:,} bytes are free there. Nothing was changed; "
            "make room or name another place"
        ) from None
    finally:
        _remove(temporary, scratch)


def _sibling(temporary: Path, role: str) -> Path:
    return temporary.with_name(f"{temporary.name}-{role}")


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _replace(temporary: Path, target: Path) -> None:
    """Put the new where the old was. A folder cannot be renamed over a full one: the old steps aside first."""
    replaced = _sibling(temporary, "replaced")
    if target.is_dir():
        target.rename(replaced)
        try:
            temporary.rename(target)
        except OSError:
            replaced.rename(target)
            raise
    else:
        temporary.replace(target)
    sync(target.parent)
    _remove(replaced)


def _collect(stored: StoredModel, scratch: Path, copy_frozen: bool) -> Contents:
    recipe = stored.recipe
    texts = {RECIPE: to_yaml(recipe.plain())}
    tensors = {f"{part}/model.safetensors": stored.tensors[part] for part in PARTS if stored.tensors.get(part)}
    if stored.tokenizer is not None:
        texts[TOKENIZER] = stored.tokenizer
    for part in PARTS:
        if not (is_frozen(recipe, part) and copy_frozen):
            continue
        folder = stored.folders.get(part) or _save_frozen(recipe, part, scratch / part)
        for file in sorted(folder.iterdir()):
            name = f"{part}/{file.name}"
            if name in FILES and file.suffix == ".safetensors":
                tensors[name] = read_tensors(file)
            elif name in FILES:
                texts[name] = _without_place(file.read_text(encoding="utf-8"))
        if part == "text" and TOKENIZER not in texts:
            raise UserError(f"text.model = {recipe.plain()['text']['model']}: its tokenizer has no tokenizer.json")
    return Contents(texts, tensors)


def _save_frozen(recipe: Recipe, part: str, folder: Path) -> Path:
    """A part made elsewhere, as its own library saves it."""
    made: Any = getattr(recipe, part).build()
    if part == "text":
        made.encoder.save_pretrained(folder, max_shard_size=ONE_SHARD)
        made.tokenizer.save_pretrained(folder)
    else:
        made.vae.save_pretrained(folder, safe_serialization=True, max_shard_size=ONE_SHARD)
    return folder


def _without_place(text: str) -> str:
    """A library's JSON without where it was loaded from: that is nobody's business, and differs by machine."""
    content = json.loads(text)
    if any(content.pop(key, None) is not None for key in ("_name_or_path", "name_or_path")):
        return json.dumps(content, indent=2)
    return text


def _card(stored: StoredModel, contents: Contents, described: _Description) -> str:
    trained = [tensor for part in ("denoiser", "text") for tensor in stored.tensors.get(part, {}).values()]
    parts = []
    for part in PARTS:
        held = {name: tensors for name, tensors in contents.tensors.items() if name.startswith(f"{part}/")}
        tensors = [tensor for group in held.values() for tensor in group.values()]
        count, size = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
        where = next(iter(held), None) or f"not copied: {stored.recipe.plain()[part]['model']}"
        parts.append((part, class_of(stored.recipe, part)[1], count, size, where))
    return model_card(
        {
            "name": stored.recipe.run_dir.name,
            "recipe": stored.recipe.plain(),
            "recipe_text": contents.texts[RECIPE],
            "parameters": sum(tensor.numel() for tensor in trained),
            "parts": parts,
            "origin": stored.origin.plain(),
            "data": described.data.plain() if described.data else None,
            "scores": described.scores,
            "conditions": described.conditions,
        }
    )
