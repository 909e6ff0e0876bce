"""The verb: what may be asked for, and an export from the stored model to its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reelwright.config import to_yaml
from reelwright.export.adapters import check_lora, lora_files, put_network_apart, write_lora
from reelwright.export.description import FINAL, Description, find_data, find_scores, notes_of, summarise, write_card
from reelwright.export.pipeline import check_beside_base, is_pipeline, write_pipeline
from reelwright.export.placing import check_target, put_in_place, scratch_beside, writing_to
from reelwright.loading import StoredModel, class_of, is_frozen, merged, open_model
from reelwright.models.exported import (
    CARD,
    FILES,
    FORMAT_VERSION,
    PARTS,
    RECIPE,
    TOKENIZER,
    Contents,
    FileEntry,
    ModelIndex,
    read_tensors,
    without_place,
    write_directory,
    write_file,
)
from reelwright.models.text import FrozenText
from reelwright.prepare import Prepared
from reelwright.pretrained.svd import CLIPImage
from reelwright.run import RunDirectory
from reelwright.types import UsageError, UserError

LORA_FORMATS = ("lora", "comfyui", "kohya")  # adapters alone, in the naming of other programs
FORMATS = ("diffusers", "safetensors", *LORA_FORMATS)
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
    overwrite: bool = False,
) -> Exported:
    """Write a run, one of its checkpoints, or an earlier export to `out` in one of FORMATS.

    Frozen parts (CLIP, T5, AutoencoderKL) are copied in. With `overwrite` an earlier export at `out` is replaced;
    UsageError where anything else is there. UserError says how many bytes are needed and free where it cannot be
    written.
    """
    _check_format(model, form)
    target = out.expanduser().resolve()
    if form not in LORA_FORMATS:
        check_target(target, out, form, overwrite)
    with open_model(model, checkpoint, raw) as stored:
        if form in LORA_FORMATS:
            check_lora(stored, form)  # first: another name would not help
            places = lora_files(stored, target)
            for place in places:
                check_target(place, out.with_name(place.name), form, overwrite)
            return _joined([_write_for_others(stored, at, form, on_progress, name) for at, name in places.items()])
        described = Description(find_data(stored), find_scores(stored))
        if form == "diffusers" and is_pipeline(stored):
            check_beside_base(stored, target, out)
            return _write_for_others(stored, target, form, on_progress, described=described)
        return _write(merged(stored), target, form, described, copy_frozen=True, on_progress=on_progress)


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
        check_target(target, target, "diffusers", overwrite=True)
        data = summarise(prepared) if prepared.data_sha256 == stored.origin.data_sha256 else None
        described = Description(data, find_scores(stored))
        _write(stored, target, "diffusers", described, copy_frozen=False, on_progress=lambda *_: None)
    return target


def _check_format(model: str, form: str) -> None:
    if form not in FORMATS:
        raise UsageError(f"--format {form}: not one of {', '.join(FORMATS)}")
    if Path(model).suffix in (".yaml", ".yml") and Path(model).is_file():
        raise UsageError(f"'{model}' is a recipe: it has no trained weights to export; give a run directory")


def _joined(parts: list[Exported]) -> Exported:
    """Several files beside one another as one export, whose path is their folder."""
    if len(parts) == 1:
        return parts[0]
    files = tuple(name for part in parts for name in part.files)
    return replace(parts[0], path=parts[0].path.parent, num_bytes=sum(part.num_bytes for part in parts), files=files)


def _write_for_others(
    stored: StoredModel,
    target: Path,
    form: str,
    on_progress: OnProgress,
    network: str = "",
    described: Description | None = None,
) -> Exported:
    """What others read: a LoRA's file (of one `network`, where experts have several) or a `described` pipeline."""
    temporary = target.with_name(f".writing-{target.name}")
    with scratch_beside(target, temporary):
        on_progress("exporting", 0, 2)
        with writing_to(target):
            if described is not None:
                write_pipeline(stored, temporary, described)
            else:
                write_lora(stored, temporary, form, network)
        on_progress("exporting", 1, 2)
        names, num_bytes = _finish(temporary, target)
        on_progress("exporting", 2, 2)
    notes = stored.warnings if described is None else notes_of(stored, described)
    return _exported(stored, target, form, names, num_bytes, notes)


def _write(
    stored: StoredModel, target: Path, form: str, described: Description, copy_frozen: bool, on_progress: OnProgress
) -> Exported:
    temporary = target.with_name(f".writing-{target.name}")

    def index_of(files: dict[str, FileEntry]) -> ModelIndex:
        return ModelIndex(
            format_version=FORMAT_VERSION,
            **{part: class_of(stored.recipe, part) for part in PARTS},  # pyright: ignore[reportArgumentType]
            origin=stored.origin,
            data=described.data,
            scores=described.scores,
            files=files,
        )

    with scratch_beside(target, temporary) as scratch:
        on_progress("exporting", 0, 3)
        contents = _collect(stored, target, scratch, copy_frozen)
        if form == "diffusers":
            put_network_apart(stored, contents)
        on_progress("exporting", 1, 3)
        if form != "safetensors":
            contents.texts[CARD] = write_card(stored, contents, described)
        with writing_to(target):
            (write_file if form == "safetensors" else write_directory)(temporary, contents, index_of)
        on_progress("exporting", 2, 3)
        with open_model(str(temporary)) as written:
            assert written.origin == stored.origin
        names, num_bytes = _finish(temporary, target)
        on_progress("exporting", 3, 3)
    return _exported(stored, target, form, names, num_bytes, notes_of(stored, described))


def _exported(
    stored: StoredModel, target: Path, form: str, names: tuple[str, ...], num_bytes: int, notes: Sequence[str]
) -> Exported:
    origin = stored.origin
    return Exported(
        target, form, origin.step, origin.weights, origin.weights_sha256, num_bytes, names, tuple(notes)
    )  # fmt: skip


def _finish(temporary: Path, target: Path) -> tuple[tuple[str, ...], int]:
    """What was written, in its place; its files' names and bytes."""
    files = sorted(p for p in temporary.rglob("*") if p.is_file()) if temporary.is_dir() else [temporary]
    names = tuple(p.relative_to(temporary).as_posix() if p != temporary else target.name for p in files)
    num_bytes = sum(path.stat().st_size for path in files)
    with writing_to(target):
        put_in_place(temporary, target)
    return names, num_bytes


def _collect(stored: StoredModel, target: Path, scratch: Path, copy_frozen: bool) -> Contents:
    recipe = stored.recipe
    texts = {RECIPE: to_yaml(recipe.plain())}
    tensors = {f"{part}/model.safetensors": stored.tensors[part] for part in PARTS if stored.tensors.get(part)}
    if stored.tokenizer is not None:
        texts[TOKENIZER] = stored.tokenizer
    for part in PARTS:
        if not (is_frozen(recipe, part) and copy_frozen):
            continue
        folder = stored.folders.get(part)
        if folder is None:
            made: Any = getattr(recipe, part).build()
            folder = scratch / part
            with writing_to(target):
                _save_frozen(made, part, folder)
        for file in sorted(folder.iterdir()):
            name = f"{part}/{file.name}"
            if name in FILES and file.suffix == ".safetensors":
                tensors[name] = read_tensors(file)
            elif name in FILES:
                texts[name] = without_place(_read(file))
        if part == "text" and TOKENIZER not in texts and getattr(recipe.model, "pictures", None) is None:
            raise UserError(f"text.model = {recipe.plain()['text']['model']}: its tokenizer has no tokenizer.json")
    return Contents(texts, tensors)


def _save_frozen(made: Any, part: str, folder: Path) -> None:
    """A part made elsewhere, as its own library saves it. UsageError where that is more than one network."""
    if part != "text":
        made.vae.save_pretrained(folder, safe_serialization=True, max_shard_size=ONE_SHARD)
    elif isinstance(made, FrozenText | CLIPImage):
        made.encoder.save_pretrained(folder, max_shard_size=ONE_SHARD)
        if made.tokenizer is not None:
            made.tokenizer.save_pretrained(folder)
    else:
        raise UsageError(
            f"text.type = {made.config.type}: it is more than one network, which this format has no place for; "
            "export the run with --format diffusers"
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); copy it anew where it comes from") from None
