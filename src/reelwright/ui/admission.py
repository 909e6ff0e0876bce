"""What a page asks for -> what may run: every request checked, every name in it resolved inside the workspace.

The same check is made twice, when a job is queued and when it starts: in between a symlink may have been put anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from reelwright.config import Config, parse_yaml
from reelwright.models.foreign import HUB_ID
from reelwright.recipe import Recipe
from reelwright.types import UsageError, UserError
from reelwright.ui.catalogue import single_file_recipe
from reelwright.ui.forms import apply_changes
from reelwright.ui.requests import (
    REQUESTS,
    EvaluateRequest,
    InspectRequest,
    PrepareRequest,
    RefineRequest,
    TrainRequest,
)
from reelwright.ui.workspace import Kind, Workspace

MAX_FRAMES, MAX_SIDE, MAX_BATCH, MAX_STEPS = 1024, 4096, 65536, 100_000_000
FOREIGN_GROUPS = ("codec", "text", "model")
FOREIGN_MODEL, FOREIGN_FOLDERS = "model", ("subfolder", "tokenizer_subfolder")  # of what was made elsewhere


def admit(workspace: Workspace, kind: str, request: Mapping[str, Any]) -> Config:
    """The request as its strict model. UsageError names every wrong field, and every path that leads out."""
    if kind not in REQUESTS:
        raise UsageError(f"{ascii(kind)}: no such kind of job; there are: {', '.join(REQUESTS)}")
    checked = REQUESTS[kind].parse(request, origin=kind)
    if isinstance(checked, TrainRequest | PrepareRequest):
        admit_recipe(workspace, checked.recipe, checked.changes)
        if isinstance(checked, TrainRequest) and checked.fork is not None:
            workspace.check_tree(workspace.resolve(checked.fork, "folder", "fork"), "fork")
    elif isinstance(checked, InspectRequest):
        admit_data(workspace, checked)
    else:
        admit_model(workspace, getattr(checked, "model"), everything=isinstance(checked, EvaluateRequest))  # noqa: B009
        if video := getattr(checked, "video", None):
            workspace.resolve(video, "video", "video")
    if isinstance(checked, RefineRequest) and not checked.prompt.strip():
        raise UsageError("refine: prompt: required; say what the refined video shows")
    return checked


def admit_data(workspace: Workspace, request: InspectRequest) -> Path | Recipe:
    """The folder to inspect, or the recipe whose data it is."""
    if request.data.endswith((".yaml", ".yml")):
        given = {key: value for key, value in request.plain().items() if key != "data" and value is not None}
        return admit_recipe(workspace, request.data, {f"data.{key}": value for key, value in given.items()})
    return workspace.check_tree(workspace.resolve(request.data, "data", "data"), "data")


def admit_model(workspace: Workspace, name: str, everything: bool = False) -> Path:
    """The real path of a model; what its recipe names beside it (`everything`: its data as well) is checked too."""
    path = workspace.resolve(name, "model", "model")
    if not path.is_relative_to(workspace.root):
        return path  # the starter, which comes with the package
    workspace.check_tree(path, "model")
    for recipe, held in _recipes_of(workspace, path):
        groups = {*FOREIGN_GROUPS, *(("data", "cache_dir") if everything else ())} - held
        check_paths(workspace, recipe, groups)
    return path


def _recipes_of(workspace: Workspace, path: Path) -> Iterator[tuple[Recipe, set[str]]]:
    """Every recipe that loading a model may follow, with the groups whose part lies in the model itself."""
    if path.is_file():
        recipe = single_file_recipe(path)
        if recipe is not None:
            yield recipe, set()
        return
    for recipe_path in (path / "recipe.yaml", *path.glob("checkpoints/*/recipe.yaml")):
        if recipe_path.is_file():
            origin = workspace.relative(recipe_path)
            values = parse_yaml(workspace.read_text(recipe_path), origin)
            held = {group for group in FOREIGN_GROUPS if (recipe_path.parent / group / "config.json").is_file()}
            yield Recipe.parse(values if isinstance(values, Mapping) else {}, origin), held


def admit_recipe(workspace: Workspace, name: str, changes: Mapping[str, Any]) -> Recipe:
    """A recipe file with the page's changes, checked whole: limits, and every path it names."""
    path = workspace.resolve(name, "recipe", "recipe")
    values = parse_yaml(workspace.read_text(path), name)
    if not isinstance(values, Mapping):
        raise UsageError(f"recipe = {ascii(name)}: not a mapping of 'key: value' lines; choose a recipe")
    recipe = apply_changes(values, changes, origin=name)
    sizes = recipe.data.sizes
    if max(s.frames for s in sizes) > MAX_FRAMES or max(max(s.height, s.width) for s in sizes) > MAX_SIDE:
        raise UsageError(
            f"data: clips over {MAX_FRAMES} frames or {MAX_SIDE} pixels a side are not started by the page"
        )
    for key, value, most in (
        ("train.batch_size", recipe.train.batch_size, MAX_BATCH),
        ("train.steps", recipe.train.steps or 0, MAX_STEPS),
    ):
        if value > most:
            raise UsageError(f"{key} = {value}: over {most}, the most the page starts")
    check_paths(workspace, recipe)
    return recipe


def check_paths(workspace: Workspace, recipe: Recipe, groups: Set[str] | None = None) -> None:
    """UsageError for the first path of the recipe (of these groups; None: all) that leads out of the workspace.

    Relative ones count from the workspace's root, where the command runs; absolute ones may only lead into it.
    """
    for key, value in _paths(recipe, ""):
        if groups is None or key.split(".")[0] in groups or key == "train.start_from":  # what a LoRA is added to
            kind: Kind = "folder" if key in ("run_dir", "cache_dir") else "any"
            path = workspace.resolve(_from_root(workspace, str(value)), kind, key)
            workspace.check_tree(path, key)
    for group in FOREIGN_GROUPS:
        settings = getattr(recipe, group)
        model = getattr(settings, FOREIGN_MODEL, None)
        if isinstance(model, str) and (groups is None or group in groups):
            _check_foreign(workspace, group, model, settings)


def _check_foreign(workspace: Workspace, group: str, model: str, settings: Config) -> None:
    """A folder of the workspace, or a hub id; the subfolders are plain names below it."""
    key = f"{group}.{FOREIGN_MODEL}"
    name = _from_root(workspace, model)
    if not HUB_ID.fullmatch(model) or (workspace.root / name).exists():
        workspace.check_tree(workspace.resolve(name, "data", key), key)
    for field in FOREIGN_FOLDERS:
        subfolder = getattr(settings, field, "")
        if subfolder:
            workspace.resolve(subfolder, "any", f"{group}.{field}")  # absolute, it would stand for itself
            workspace.resolve(f"{name}/{subfolder}", "any", f"{group}.{field}")


def _from_root(workspace: Workspace, text: str) -> str:
    """An absolute path into the workspace as the name it has there; any other text as it is, for `resolve` to judge."""
    root = f"{workspace.root}/"
    return text.removeprefix(root) if text.startswith(root) else text


def _paths(settings: Any, prefix: str) -> Iterator[tuple[str, Path]]:
    """Every Path of a config, however deep, with its dotted key."""
    if isinstance(settings, Path):
        yield prefix, settings
    elif isinstance(settings, Config):
        for name in type(settings).model_fields:
            yield from _paths(getattr(settings, name), f"{prefix}.{name}" if prefix else name)
    elif isinstance(settings, Mapping):
        for name, inner in settings.items():
            yield from _paths(inner, f"{prefix}.{name}")
    elif isinstance(settings, list | tuple):
        for inner in settings:
            yield from _paths(inner, prefix)


def problem_of(error: Exception) -> str:
    """One message for a job that could not be done."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
