"""A model on disk, read and verified, nothing built: what exporting needs, and building begins with."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reelwright.config import MAX_YAML_BYTES, parse_yaml
from reelwright.models.exported import (
    INDEX,
    MAX_INDEX_BYTES,
    METADATA_KEY,
    NETWORK_WEIGHTS,
    NETWORKS,
    PARTS,
    RECIPE,
    TOKENIZER,
    DataSummary,
    ModelIndex,
    Origin,
    check_weights,
    read_index,
    read_tensors,
    tensors_entry,
    text_entry,
    verify_files,
    weights_of,
)
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.training import checkpoint as checkpoints
from reelwright.types import UsageError, UserError

NEWEST = "newest"  # for `checkpoint`
BASE = "base.json"  # of a checkpoint that holds adapters: sha256 of the weights they were trained beside
GROUPS = dict(zip(PARTS, ("model", "text", "codec"), strict=True))  # part -> its group in the recipe


@dataclass(frozen=True)
class StoredModel:
    """A model as it lies on disk: verified, not built."""

    path: str
    recipe: Recipe
    origin: Origin
    tensors: Mapping[str, dict[str, Tensor]]  # [part][name]: the weights this project made
    sources: Mapping[str, str]  # part -> the file of its weights, for messages
    tokenizer: str | None
    folders: Mapping[str, Path] = field(default_factory=dict)  # part -> its copy, where it was made elsewhere
    data: DataSummary | None = None
    scores: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


@contextmanager
def open_model(model: str, checkpoint: str | None = None, raw: bool = False) -> Iterator[StoredModel]:
    """What `load_model` builds. A frozen part's `folders` last as long as the context."""
    path = Path(model)
    is_checkpoint, is_exported = (path / checkpoints.MANIFEST).is_file(), (path / INDEX).is_file()
    is_run = (path / RECIPE).is_file() and not (is_checkpoint or is_exported)
    if checkpoint is not None and path.exists() and not is_run:
        raise UsageError(f"--checkpoint {checkpoint}: '{model}' is not a run directory, so it has no choice of them")
    if is_checkpoint:
        yield _read_checkpoint(path, raw, ())
    elif is_exported:
        yield _read_directory(path, raw)
    elif path.suffix == ".safetensors" and path.is_file():
        with tempfile.TemporaryDirectory(prefix="reelwright-") as scratch:
            yield _read_file(path, raw, Path(scratch))
    elif is_run:
        chosen, warnings = _choose_checkpoint(path, checkpoint)
        yield _read_checkpoint(chosen, raw, warnings)
    else:
        found = "not a model" if path.exists() else "not a model: no such file or folder"
        raise UsageError(
            f"'{model}': {found}; give a run directory (it holds recipe.yaml and checkpoints/), one of its "
            "checkpoints, an exported directory or .safetensors file, or a recipe (*.yaml: the weights of its "
            "model.model, or random ones)"
        )


def is_frozen(recipe: Recipe, part: str) -> bool:
    """Whether a part was made elsewhere and only read here."""
    return part != "denoiser" and "model" in type(getattr(recipe, GROUPS[part])).model_fields


def local_recipe(recipe: Recipe, folders: Mapping[str, Path]) -> Recipe:
    """The recipe with what was made elsewhere taken from `folders`."""
    groups = {}
    for part, folder in folders.items():
        group = getattr(recipe, GROUPS[part])
        subfolders = {name: "" for name in type(group).model_fields if name.endswith("subfolder")}
        groups[GROUPS[part]] = group.model_copy(update={"model": str(folder), **subfolders})
    return recipe.model_copy(update=groups)


def class_of(recipe: Recipe, part: str) -> tuple[str, str]:
    """Library and class of a part, as the index names them."""
    return "reelwright", type(getattr(recipe, GROUPS[part])).__name__.removesuffix("Config")


# -- a run and its checkpoints


def _choose_checkpoint(run_path: Path, name: str | None) -> tuple[Path, tuple[str, ...]]:
    folder = RunDirectory(run_path).checkpoints
    present = sorted(p.name for p in folder.glob("step-*"))
    if name is not None and name != NEWEST:
        wanted = checkpoints.name_of(int(name)) if name.isdigit() else name
        if wanted not in present:
            raise UsageError(f"--checkpoint {name}: not in {folder}; there are: {', '.join(present) or 'none'}, newest")
        return folder / wanted, ()
    passed_over: list[str] = []
    newest = checkpoints.newest_valid(folder, passed_over.append)
    if newest is None:
        reasons = "; ".join(passed_over) or "none has been saved yet"
        raise UsageError(f"{run_path}: no usable checkpoint ({reasons}); train it with: reelwright train RECIPE")
    state = newest / "state.json"  # verified just now; hashing gigabytes again would tell nothing new
    best = json.loads(state.read_text(encoding="utf-8")).get("best_step") if state.is_file() else None
    if best is not None and name != NEWEST:
        try:
            checkpoints.verify_checkpoint(folder / checkpoints.name_of(best))
        except checkpoints.DamagedCheckpoint as damage:
            passed_over.append(f"the best checkpoint is damaged, {newest.name} is used instead: {damage}")
        else:
            return folder / checkpoints.name_of(best), tuple(passed_over)
    return newest, tuple(passed_over)


def _read_checkpoint(path: Path, raw: bool, warnings: tuple[str, ...]) -> StoredModel:
    stem = "model" if raw or not (path / "ema.safetensors").exists() else "ema"
    weights = path / f"{stem}.safetensors"
    recipe = Recipe.load(path / RECIPE)
    frozen = recipe.train.freeze or recipe.train.train_only  # no average is kept of what does not change
    try:
        loaded = checkpoints.load_checkpoint(path, stems=(stem, "codec", *(["model"] if frozen else [])))
    except SafetensorError as error:
        raise UserError(f"{path}: its tensors cannot be read ({error}); use another checkpoint") from None
    if stem not in loaded.tensors:
        raise UserError(f"{weights}: missing; use another checkpoint")
    held = {**(loaded.tensors["model"] if frozen else {}), **loaded.tensors[stem]}
    tokenizer = path / "tokenizer.json"
    origin = Origin(
        step=loaded.state.step,
        weights="averaged" if stem == "ema" else "last",
        weights_sha256=loaded.manifest["files"][weights.name]["sha256"],
        seconds=loaded.state.seconds,
        data_sha256=loaded.state.data_sha256,
        versions=loaded.manifest["versions"],
        base_sha256=base_of(path),
    )
    return StoredModel(
        path=str(path),
        recipe=recipe,
        origin=origin,
        tensors={**_by_part(held, weights), "codec": loaded.tensors.get("codec", {})},
        sources={
            "denoiser": str(weights), "text": str(weights), "codec": str(path / "codec.safetensors"),
            "tokenizer": str(tokenizer),
        },
        tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None,
        warnings=warnings,
    )  # fmt: skip


def _by_part(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """{'text.norm.bias': ...} -> {'text': {'norm.bias': ...}}."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, inner = name.partition(".")
        if part not in GROUPS:
            raise UserError(f"{path} does not fit its recipe: unexpected ['{name}']")
        parts.setdefault(part, {})[inner] = tensor
    return parts


def base_of(checkpoint: Path) -> str:
    """sha256 of the weights a checkpoint's adapters belong to; '' where it holds all weights itself."""
    path = checkpoint / BASE
    return json.loads(path.read_text(encoding="utf-8"))["sha256"] if path.is_file() else ""


# -- an exported model


def _read_directory(path: Path, raw: bool) -> StoredModel:
    place = path / INDEX
    if place.stat().st_size > MAX_INDEX_BYTES:
        raise UserError(f"{place}: larger than {MAX_INDEX_BYTES} bytes; it is no index of ours")
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read ({error}); export the model again") from None
    index = read_index(text, str(place))
    verify_files(path, index)
    recipe = Recipe.load(path / RECIPE)
    tensors, folders = {}, {}
    for part in GROUPS:
        if is_frozen(recipe, part):
            if f"{part}/config.json" in index.files:
                folders[part] = path / part
                check_weights(weights_of(index, part, path))  # the libraries' own messages name no file
        elif f"{part}/model.safetensors" in index.files:
            tensors[part] = read_tensors(path / part / "model.safetensors")
    for network in NETWORKS:
        if f"{network}/{NETWORK_WEIGHTS}" in index.files:
            folders["denoiser"] = path / network
            apart = read_tensors(path / network / NETWORK_WEIGHTS)
            tensors.setdefault("denoiser", {}).update({f"{network}.{name}": apart[name] for name in apart})
    tokenizer = None
    if TOKENIZER in index.files and "text" not in folders:
        tokenizer = (path / TOKENIZER).read_text(encoding="utf-8", errors="replace")
    sources = {part: str(path / part / "model.safetensors") for part in GROUPS} | {"tokenizer": str(path / TOKENIZER)}
    return _exported(str(path), index, recipe, tensors, sources, tokenizer, folders, raw)


def _read_file(path: Path, raw: bool, scratch: Path) -> StoredModel:
    check_weights(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise UsageError(
            f"{path}: holds tensors but not the model they belong to; give a file that "
            "`reelwright export --format safetensors` made"
        )
    index = read_index(text, str(path))
    tensors = _by_part(read_tensors(path), path)
    for name, entry in index.files.items():
        if name in index.texts:
            found = text_entry(index.texts[name])
        else:
            found = tensors_entry(tensors.get(name.partition("/")[0], {}))
        if found != entry:
            raise UserError(f"{path}: its {name} is damaged or changed; copy the file anew or export the model again")
    if RECIPE not in index.texts or (strange := set(index.texts) - set(index.files)):
        raise UserError(f"{path}: its index does not name {RECIPE if RECIPE not in index.texts else strange}")
    recipe = Recipe.parse(_mapping(index.texts[RECIPE], f"{path}, {RECIPE}"), origin=f"{path}, {RECIPE}")
    folders = {}
    for part in GROUPS:
        if is_frozen(recipe, part) and f"{part}/config.json" in index.texts:
            folders[part] = scratch / part
            folders[part].mkdir()
            for name in index.texts:
                if name.startswith(f"{part}/"):
                    (scratch / name).write_text(index.texts[name], encoding="utf-8")
            save_file(tensors.pop(part, {}), weights_of(index, part, scratch), metadata={"format": "pt"})
    sources = {name: f"{path} ({name})" for name in (*GROUPS, "tokenizer")}
    tokenizer = None if "text" in folders else index.texts.get(TOKENIZER)
    return _exported(str(path), index, recipe, tensors, sources, tokenizer, folders, raw)


def _mapping(text: str, place: str) -> dict[str, Any]:
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{place}: longer than {MAX_YAML_BYTES} characters; a recipe is short")
    values = parse_yaml(text, place)
    if not isinstance(values, dict):
        raise UserError(f"{place}: not a mapping of 'key: value' lines")
    return values


def _exported(
    path: str, index: ModelIndex, recipe: Recipe, tensors: Any, sources: Any, tokenizer: Any, folders: Any, raw: bool
) -> StoredModel:
    for part in GROUPS:
        named, right = getattr(index, part), class_of(recipe, part)
        if named != right:
            raise UserError(f"{path}: {part} = {list(named)}, but its recipe makes it {list(right)}; nothing was built")
    if raw and index.origin.weights == "averaged":
        raise UsageError(f"--raw: {path} holds the averaged weights alone; export the run again with --raw")
    return StoredModel(path, recipe, index.origin, tensors, sources, tokenizer, folders, index.data, index.scores)
