"""An export on its way to its place: written beside it, synced, and renamed when it is whole.

What stands under the name is always whole. What a killed export left is cleared away by the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reelwright.durable import sha256_of, sync
from reelwright.models.exported import (
    CARD,
    INDEX,
    METADATA_KEY,
    PIPELINE_INDEX,
    FileEntry,
    read_index,
    read_pipeline_index,
)
from reelwright.types import UsageError, UserError

SINGLE = ("safetensors", "lora", "comfyui", "kohya")  # the formats that are one file


def check_target(target: Path, out: Path, form: str, overwrite: bool) -> None:
    """UsageError where `out` does not fit the format, or holds anything that replacing it would lose: an earlier export
    too, unless that is to be replaced."""
    single = form in SINGLE
    if single != (target.suffix == ".safetensors"):
        rule = "one file: give OUT ending in .safetensors" if single else "a folder: give OUT without .safetensors"
        raise UsageError(f"{out}: --format {form} writes {rule}, or choose the other format")
    if not target.exists():
        return
    obstacle = _foreign_to_export(target, single)
    if obstacle:
        raise UsageError(f"{out}: {obstacle}; only an earlier export is replaced. Name another OUT, or move it away")
    if not overwrite and (single or (target / INDEX).is_file()):
        raise UsageError(f"{out}: an earlier export is there; name another OUT, or give --overwrite to replace it")


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
    pipeline = (target / PIPELINE_INDEX).is_file()
    place, read = (PIPELINE_INDEX, read_pipeline_index) if pipeline else (INDEX, read_index)
    if not (target / place).is_file():
        return f"the folder is not empty ({present[0].name})"
    try:
        files = read((target / place).read_text(encoding="utf-8"), str(target / place)).files
    except (UserError, OSError, ValueError):
        return f"its {place} is not of an export, or damaged"
    for path in present:
        name = path.relative_to(target).as_posix()
        if name != place and name not in files:
            return f"the folder holds {name}, which is not of an export"
    for name in files if pipeline else (CARD,):  # of a pipeline people edit more than the card: its scheduler, say
        if (target / name).is_file() and _was_edited(target / name, files[name], target / place):
            return f"its {name} was edited since"
    return ""


def _was_edited(file: Path, entry: FileEntry, index: Path) -> bool:
    """Weights are only read where they are newer than the index, which is written last: gigabytes take minutes."""
    if file.stat().st_size != entry.bytes:
        return True
    older = file.stat().st_mtime_ns <= index.stat().st_mtime_ns
    return not (file.suffix == ".safetensors" and older) and sha256_of(file) != entry.sha256


@contextmanager
def scratch_beside(target: Path, temporary: Path) -> Iterator[Path]:
    """A scratch folder beside `target`, without anything a killed export left; cleared whatever happens."""
    scratch, replaced = _sibling(temporary, "parts"), _sibling(temporary, "replaced")
    try:
        with writing_to(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if replaced.exists() and not target.exists():  # killed between the two renames
                replaced.rename(target)
            _remove(temporary, scratch, replaced)
            scratch.mkdir()
        yield scratch
    finally:
        _remove(temporary, scratch)


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """UserError in place of what the system says where something cannot be written for `target`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors in its own
        free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else 0
        raise UserError(
            f"{target}: the model could not be written ({error}); {free:,} bytes are free there. Nothing was changed; "
            "make room or name another place"
        ) from None


def _sibling(temporary: Path, role: str) -> Path:
    return temporary.with_name(f"{temporary.name}-{role}")


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def put_in_place(temporary: Path, target: Path) -> None:
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
