"""MODEL, as every command takes it -> a Bundle with its weights.

A model on disk is first read and verified (`open_model`), then built (`load_model`); exporting needs only the first.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from reelwright.bundle import adapt, build_bundle, fitted_path
from reelwright.config import MAX_YAML_BYTES, parse_yaml
from reelwright.data.cache import write_atomic
from reelwright.durable import sha256_of
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
from reelwright.models.foreign import content_hash
from reelwright.pretrained.lora_keys import read_updates
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.training import checkpoint as checkpoints
from reelwright.training.lora import add_updates, merge
from reelwright.types import Bundle, UsageError, UserError

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


@dataclass(frozen=True)
class LoadedModel:
    """A Bundle with its weights and where they come from."""

    bundle: Bundle
    recipe: Recipe
    origin: str
    step: int | None  # None: random weights
    weights_sha256: str
    seconds: float = 0.0  # of training
    warnings: tuple[str, ...] = ()
    loras: tuple[dict[str, Any], ...] = ()  # files added by `with_loras`: their names, scales and sha256


def load_model(model: str, checkpoint: str | None = None, raw: bool = False) -> LoadedModel:
    """MODEL as the command line takes it: a run directory, one of its checkpoints, an exported model, or a recipe.

    A run means its averaged weights (`raw`: the last weights instead) at the best checkpoint if one is tracked, else
    at the newest valid one. `checkpoint` names another: a step number, a checkpoint's name, or "newest".
    """
    path = Path(model)
    if path.suffix in (".yaml", ".yml") and path.is_file() and checkpoint is None:
        return _load_recipe(path)
    if checkpoint is None and not raw and (path / RECIPE).is_file() and _is_pipeline(path / INDEX):
        return _load_pipeline(path)
    with open_model(model, checkpoint, raw) as stored:
        return build_model(stored)


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
        raise UsageError(
            f"'{model}': not a model; give a run directory (it holds recipe.yaml and checkpoints/), one of its "
            "checkpoints, an exported directory or .safetensors file, or a recipe (*.yaml, for random weights)"
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


def check_base(source: str, base_sha256: str, recipe: Recipe, bundle: Bundle) -> None:
    """UserError where adapters would be put beside other weights than those they were trained with."""
    if base_sha256 != bundle.base_sha256:
        where = recipe.train.start_from or getattr(recipe.model, "model", None)
        raise UserError(
            f"{source}: its adapters were trained beside the weights {base_sha256[:12]}..., but {where} holds "
            f"{bundle.base_sha256[:12]}...: it was changed since, or is another model; put the right one back there"
        )


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


# -- what was read -> what generates


def build_model(stored: StoredModel) -> LoadedModel:
    """The Bundle of a stored model, with its weights. UserError where they do not fit what its recipe builds."""
    recipe = stored.recipe
    if not is_frozen(recipe, "text") and stored.tokenizer is None:
        raise UserError(f"{stored.sources['tokenizer']}: missing, and the text encoder cannot be used without it")
    try:
        bundle = build_bundle(
            local_recipe(recipe, stored.folders), stored.tensors.get("codec", {}), stored.tokenizer
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(f"{stored.sources['codec']} does not fit its recipe: {error}") from None
    except ValueError as error:
        raise UserError(f"{stored.sources['tokenizer']}: {error}") from None
    bundle, _ = beginning(bundle, recipe, fresh=False)
    check_base(stored.path, stored.origin.base_sha256, recipe, bundle)
    for part in ("denoiser", "text"):
        module = getattr(bundle, part)
        if part == "denoiser" or module.trainable:
            adapted = bool(bundle.base_sha256)
            _load_weights(module, stored.tensors.get(part, {}), part, stored.sources[part], adapted)
        elif part in stored.tensors:
            raise UserError(f"{stored.sources[part]} does not fit its recipe: weights of {part}, which does not train")
    origin = stored.origin
    return LoadedModel(
        bundle, recipe, stored.path, origin.step, origin.weights_sha256, origin.seconds, stored.warnings
    )  # fmt: skip


def _load_weights(
    module: nn.Module, tensors: dict[str, Tensor], part: str, source: str, adapted: bool = False
) -> None:
    """UserError names the tensors that are missing, unexpected or of another shape; then nothing was loaded.

    Where the module is `adapted`, only what trains of it is expected.
    """
    expected: dict[str, Any] = module.state_dict()
    if adapted:
        expected = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    wrong = {
        "missing": [f"{part}.{name}" for name in expected if name not in tensors],
        "unexpected": [f"{part}.{name}" for name in tensors if name not in expected],
        "of another shape": [
            f"{part}.{name}: {list(tensors[name].shape)}, not {list(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    }
    if any(wrong.values()):
        reasons = ", ".join(f"{reason} {names[:3]}" for reason, names in wrong.items() if names)
        raise UserError(f"{source} does not fit its recipe: {reasons}")
    module.load_state_dict(tensors, strict=not adapted)


# -- what a run begins with


def beginning(bundle: Bundle, recipe: Recipe, fresh: bool) -> tuple[Bundle, list[str]]:
    """A bundle as `train` begins with it, and the names of the layers that have an adapter.

    The weights of `train.start_from` where the run is `fresh` or they are the base of adapters; then the adapters.
    UsageError where weights do not fit, by name and shape.
    """
    source = recipe.train.start_from
    if source is not None and (fresh or recipe.train.lora is not None):
        with open_model(source) as stored:
            tensors, tokenizer = merged(stored).tensors, stored.tokenizer
        for part in ("denoiser", "text"):
            module: Any = getattr(bundle, part)
            if part == "text" and not (isinstance(module, nn.Module) and module.trainable):
                continue
            if part == "text" and module.tokenizer_json() != tokenizer:
                raise UsageError(
                    f"train.start_from = {source}: its tokenizer is not the one in {recipe.cache_dir}; run `reelwright "
                    "prepare` again with this recipe, or use another cache_dir"
                )
            try:
                _load_weights(module, tensors.get(part, {}), part, source)
            except UserError as error:
                raise UsageError(f"train.start_from: {error}; model and text must be as they were there") from None
    return adapt(bundle, recipe)


def take_fits(recipe: Recipe) -> None:
    """Put the fitted codec and tokenizer of `train.start_from` in the cache: its weights know no others."""
    source = recipe.train.start_from
    if source is None:
        return
    wanted = [part for part in ("codec", "text") if not fitted_path(recipe, part).exists()]
    if not wanted:
        return
    with open_model(source) as stored:
        for part in wanted:
            theirs, ours = (getattr(r, part) for r in (stored.recipe, recipe))
            if is_frozen(recipe, part):
                continue
            if theirs != ours:
                raise UsageError(f"train.start_from = {source}: its {part} is {theirs.plain()}, not {ours.plain()}")
            path = fitted_path(recipe, part)
            path.parent.mkdir(parents=True, exist_ok=True)
            if part == "codec" and stored.tensors.get("codec"):
                write_atomic(path, save(dict(stored.tensors["codec"])))
            elif part == "text" and stored.tokenizer is not None:
                write_atomic(path, stored.tokenizer.encode())


def full_precision(stored: StoredModel) -> StoredModel:
    """The same with the base's own weights in place of those rounded to 8 bits, which nothing can be added to."""
    model = stored.recipe.model
    if getattr(model, "quantize", None) is None:
        return stored
    exact = model.model_copy(update={"quantize": None})
    return replace(stored, recipe=stored.recipe.model_copy(update={"model": exact}))


def merged(stored: StoredModel) -> StoredModel:
    """A stored model with its adapters added to the weights beside them; as it is where it has none."""
    if stored.recipe.train.lora is None:
        return stored
    bundle = build_model(full_precision(stored)).bundle
    merge(bundle.denoiser)
    parts = {"denoiser": bundle.denoiser, **({"text": bundle.text} if bundle.text.trainable else {})}
    train = stored.recipe.train.model_copy(update={"lora": None, "start_from": None})
    return replace(
        stored,
        recipe=stored.recipe.model_copy(update={"train": train}),
        origin=stored.origin.model_copy(update={"base_sha256": ""}),
        tensors={**stored.tensors, **{part: dict(module.state_dict()) for part, module in parts.items()}},
    )


def with_loras(loaded: LoadedModel, wanted: Sequence[str]) -> LoadedModel:
    """The model with the LoRAs of files named 'FILE' or 'FILE:SCALE' beside its weights, all of them at once.

    The files may be ours, diffusers', ComfyUI's or kohya's; UserError with the counts where one is for another model.
    """
    added = list(loaded.loras)
    for text in wanted:
        path, scale = lora_and_scale(text)
        if not path.is_file():
            raise UsageError(f"--lora {text}: no such file; give a .safetensors file, or FILE:SCALE")
        tensors, denoiser = read_tensors(path), loaded.bundle.denoiser
        new = tuple(f"{name}." for name in getattr(denoiser, "lora_also_trains", ()))
        beside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(new)} if new else {}
        updates = read_updates(tensors, loaded.recipe.model.type, denoiser, str(path))
        denoiser.load_state_dict({**denoiser.state_dict(), **beside})
        add_updates(denoiser, updates, f"added_{len(added)}", scale)
        added.append({"file": str(path), "scale": scale, "sha256": sha256_of(path), "layers": len(updates)})
    return replace(loaded, loras=tuple(added))


def lora_and_scale(text: str) -> tuple[Path, float]:
    """'style.safetensors:0.8' -> its path and 0.8; 1 where it names no scale."""
    path, _, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        return Path(text), 1.0
    if not path or not math.isfinite(scale):
        raise UsageError(f"--lora {text}: give FILE or FILE:SCALE, the scale a number")
    return Path(path), scale


def _is_pipeline(index: Path) -> bool:
    """Whether diffusers wrote a model_index.json."""
    try:
        return "_diffusers_version" in json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _load_pipeline(path: Path) -> LoadedModel:
    """A fine-tuned pipeline of diffusers as `export` leaves it, its recipe beside it."""
    recipe = Recipe.load(path / RECIPE)
    groups: dict[str, Any] = {"train": recipe.train.model_copy(update={"lora": None, "start_from": None})}
    for name in ("model", "codec", "text"):
        group: Any = getattr(recipe, name)
        moved = {"model": str(path), **({"quantize": None} if name == "model" else {})}
        groups[name] = group.model_copy(update=moved)
    recipe = recipe.model_copy(update=groups)
    bundle = build_bundle(recipe)
    return LoadedModel(bundle, recipe, str(path), None, content_hash({}, bundle.denoiser.state_dict()))


def _load_recipe(path: Path) -> LoadedModel:
    recipe = Recipe.load(path)
    bundle = build_bundle(recipe)
    published = getattr(recipe.model, "model", None)
    if published is not None and not getattr(bundle.denoiser, "lora_also_trains", ()):
        return LoadedModel(bundle, recipe, str(path), None, f"as published: {published}")
    warning = f"{path} is a recipe, not a trained model: its weights are random and so are its videos"
    return LoadedModel(bundle, recipe, str(path), None, "random", warnings=(warning,))
