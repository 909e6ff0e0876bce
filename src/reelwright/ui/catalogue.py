"""What a workspace holds: runs, exports, recipes, folders of clips, made videos. Read only, and bounded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from reelwright.config import parse_yaml
from reelwright.models.exported import INDEX, METADATA_KEY, RECIPE, read_index
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory, step_of
from reelwright.types import UserError
from reelwright.video.write import FORMATS, sidecar_path

if TYPE_CHECKING:
    from reelwright.ui.workspace import Workspace

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")  # what a page may name or upload
MAX_SCANNED, MAX_DEPTH = 50_000, 5
CAPTIONS = ("captions.json", "metadata.json")
CACHE_FOLDERS = {"shards", "pending"}  # see data/cache.py
NOT_SCANNED = {"node_modules", "__pycache__", "site-packages"}


@dataclass(frozen=True)
class ModelEntry:
    """A model of the workspace. `name` is what `Workspace.resolve(name, "model")` takes."""

    name: str
    kind: Literal["run", "export", "starter"]
    modified: float  # seconds since the epoch
    step: int | None = None  # of the newest checkpoint; None: nothing saved yet, or unknown
    total_steps: int | None = None
    defaults: dict[str, Any] = field(default_factory=dict)  # sampler, steps, guidance, frames, width, height, fps
    problem: str = ""  # why it cannot be used, in a sentence


@dataclass(frozen=True)
class RecipeEntry:
    """A recipe of the workspace."""

    name: str
    run_dir: str
    summary: str  # the first comment line of the file
    problem: str = ""


@dataclass(frozen=True)
class DataEntry:
    """A folder that looks like captioned clips: `videos` files directly in it or in its videos/."""

    name: str
    videos: int
    captions: str  # captions.json, metadata.json or txt


@dataclass(frozen=True)
class OutputEntry:
    """A made video. `path` is real and inside the workspace; `recipe` is {} where none is beside it."""

    name: str
    path: Path
    modified: float
    recipe: dict[str, Any]


@dataclass(frozen=True)
class _Folder:
    path: Path
    folders: frozenset[str]
    files: frozenset[str]

    @property
    def is_run(self) -> bool:
        return "recipe.yaml" in self.files and "checkpoints" in self.folders

    @property
    def is_export(self) -> bool:
        return INDEX in self.files

    @property
    def is_cache(self) -> bool:
        return bool(self.folders & CACHE_FOLDERS) and "manifests" in self.folders


def find_models(workspace: Workspace) -> list[ModelEntry]:
    """Runs, exported folders and single .safetensors files, the last changed first."""
    found: list[ModelEntry] = []
    for folder in _walk(workspace.root):
        if folder.is_run:
            found.append(_run_entry(workspace, folder.path))
        elif folder.is_export:
            found.append(_export_entry(workspace, folder.path, folder.path / RECIPE))
        else:
            files = (folder.path / name for name in sorted(folder.files) if name.endswith(".safetensors"))
            found += [entry for path in files if (entry := _single_file_entry(workspace, path))]
    return sorted(found, key=lambda entry: entry.modified, reverse=True)


def starter_entry(folder: Path) -> ModelEntry:
    """The model that comes with the package."""
    recipe = folder / "recipe.yaml"
    defaults = {}
    if recipe.is_file():
        defaults = _defaults(Recipe.load(recipe))
    return ModelEntry("starter", "starter", folder.stat().st_mtime, defaults=defaults)


def find_recipes(workspace: Workspace) -> list[RecipeEntry]:
    """YAML files outside runs, exports and caches that have the keys of a recipe, by name."""
    found: list[RecipeEntry] = []
    for folder in _walk(workspace.root):
        if folder.is_run or folder.is_export:
            continue
        for name in sorted(folder.files):
            if name.endswith((".yaml", ".yml")):
                entry = _recipe_entry(workspace, folder.path / name)
                found += [entry] if entry else []
    return sorted(found, key=lambda entry: entry.name)


def find_data(workspace: Workspace) -> list[DataEntry]:
    """Folders with captions and videos, by name."""
    found: list[DataEntry] = []
    for folder in _walk(workspace.root):
        if folder.is_run or folder.is_export or folder.path.name in ("outputs", "uploads"):
            continue
        videos = [name for name in folder.files if name.lower().endswith(VIDEO_SUFFIXES)]
        texts = [name for name in videos if Path(name).with_suffix(".txt").name in folder.files]
        captions = next((name for name in CAPTIONS if name in folder.files), "txt" if texts else "")
        if captions and "videos" in folder.folders and not videos:
            videos = [name for name in _names(folder.path / "videos") if name.lower().endswith(VIDEO_SUFFIXES)]
        if captions and videos:
            found.append(DataEntry(workspace.relative(folder.path), len(videos), captions))
    return sorted(found, key=lambda entry: entry.name)


def find_outputs(workspace: Workspace, limit: int) -> list[OutputEntry]:
    """Videos of outputs/ and one folder below, the newest first."""
    try:
        top = workspace.resolve("outputs", "data")
    except UserError:
        return []
    folders = [top, *(Path(entry.path) for entry in _entries(top) if entry.is_dir(follow_symlinks=False))]
    files = [
        (entry.stat(follow_symlinks=False).st_mtime, Path(entry.path))
        for folder in folders
        for entry in _entries(folder)
        if entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in FORMATS
    ]
    files.sort(key=lambda item: (item[0], item[1].name), reverse=True)
    return [
        OutputEntry(workspace.relative(path), path, modified, _read_recipe(workspace, path))
        for modified, path in files[:limit]
    ]


def _read_recipe(workspace: Workspace, video: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(workspace.read_text(sidecar_path(video)))
    except (UserError, ValueError, RecursionError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _run_entry(workspace: Workspace, path: Path) -> ModelEntry:
    name, run = workspace.relative(path), RunDirectory(path)
    steps = [step_of(Path(entry.name)) for entry in _entries(run.checkpoints) if _is_checkpoint(entry)]
    step = max(steps, default=None)
    problem = "" if steps else "nothing has been saved yet"
    try:
        modified = max(path.stat().st_mtime, run.recipe_path.stat().st_mtime)
        recipe = _parse_recipe(workspace, run.recipe_path)
    except (UserError, OSError) as error:
        return ModelEntry(name, "run", 0.0, step, problem=str(error))
    with_metrics = run.metrics_path
    if with_metrics.is_file() and not with_metrics.is_symlink():
        modified = max(modified, with_metrics.stat().st_mtime)
    return ModelEntry(name, "run", modified, step, recipe.train.steps, _defaults(recipe), problem)


def _is_checkpoint(entry: os.DirEntry[str]) -> bool:
    number = entry.name.removeprefix("step-")
    return number.isdecimal() and number != entry.name and len(number) >= 7 and entry.is_dir(follow_symlinks=False)


def _export_entry(workspace: Workspace, path: Path, recipe_path: Path) -> ModelEntry:
    name, modified = workspace.relative(path), path.stat().st_mtime
    try:
        return ModelEntry(name, "export", modified, defaults=_defaults(_parse_recipe(workspace, recipe_path)))
    except UserError as error:
        return ModelEntry(name, "export", modified, problem=str(error))


def _single_file_entry(workspace: Workspace, path: Path) -> ModelEntry | None:
    """None for tensors that are no exported model of ours."""
    name, modified = workspace.relative(path), path.stat().st_mtime
    try:
        recipe = single_file_recipe(path)
    except UserError as error:
        return ModelEntry(name, "export", modified, problem=str(error))
    return None if recipe is None else ModelEntry(name, "export", modified, defaults=_defaults(recipe))


def single_file_recipe(path: Path) -> Recipe | None:
    """The recipe in an exported .safetensors file; None where it is none of ours. UserError where it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError):
        return None
    if text is None:
        return None
    values = parse_yaml(read_index(text, path.name).texts.get(RECIPE, ""), path.name)
    return Recipe.parse(values if isinstance(values, Mapping) else {}, origin=path.name)


def _recipe_entry(workspace: Workspace, path: Path) -> RecipeEntry | None:
    """None where the file does not even try to be a recipe."""
    name = workspace.relative(path)
    try:
        text = workspace.read_text(path)
        values = parse_yaml(text, name)
    except UserError as error:
        return RecipeEntry(name, "", "", str(error)) if "recipe" in path.name else None
    if not isinstance(values, Mapping) or not {"run_dir", "data"} <= set(values):
        return None
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    summary = first.lstrip("# ").strip() if first.startswith("#") else ""
    run_dir = str(values["run_dir"])
    try:
        Recipe.parse(values, origin=name)
    except UserError as error:
        return RecipeEntry(name, run_dir, summary, str(error))
    return RecipeEntry(name, run_dir, summary)


def _parse_recipe(workspace: Workspace, path: Path) -> Recipe:
    values = parse_yaml(workspace.read_text(path), path.name)
    return Recipe.parse(values if isinstance(values, Mapping) else {}, origin=workspace.relative(path))


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """What `generate` takes where it is not told otherwise."""
    size, sampling = recipe.size, recipe.sampling
    return {
        "sampler": sampling.sampler, "steps": sampling.steps, "guidance": sampling.guidance, "frames": size.frames,
        "width": size.width, "height": size.height, "fps": recipe.data.fps,
    }  # fmt: skip


def _walk(root: Path) -> Iterator[_Folder]:
    """Folders below `root`, itself included: no symlink followed, nothing hidden, no further than bounds and runs."""
    pending, scanned = [(root, 0)], 0
    while pending and scanned < MAX_SCANNED:
        path, depth = pending.pop()
        folders, files = [], []
        for entry in _entries(path):
            scanned += 1
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                files.append(entry.name)
        folder = _Folder(path, frozenset(folders), frozenset(files))
        if folder.is_cache:
            continue
        yield folder
        if depth < MAX_DEPTH and not folder.is_run and not folder.is_export:
            pending += [(path / name, depth + 1) for name in sorted(folders, reverse=True) if name not in NOT_SCANNED]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # missing, gone meanwhile, or not ours to read
        return []


def _names(folder: Path) -> list[str]:
    return [] if folder.is_symlink() else [entry.name for entry in _entries(folder)]
