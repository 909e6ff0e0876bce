"""Checkpoints: everything that must survive, written so that a kill at any instant leaves the last one whole.

A checkpoint is a directory of safetensors and JSON files (never a pickle). It is written under a temporary name on the
same file system, every file synced, a manifest with sizes and sha256 last, then renamed. It is valid when its manifest
verifies; resuming takes the newest valid one. Tensor files are reproducible byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reelwright.durable import sha256_of, sync
from reelwright.types import UserError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-\d{7,}")


class DamagedCheckpoint(UserError):
    """A checkpoint whose files do not match its manifest."""


@dataclass
class TrainState:
    """What a run is, besides its tensors. Random draws are keyed by (seed, step, sample), so this is all of it."""

    step: int = 0  # optimizer steps done; also the sampler's position
    loss_sum: float = 0.0  # since the last logged line
    loss_count: int = 0
    seconds: float = 0.0  # of training, over all sessions
    best_step: int | None = None
    best_loss: float | None = None
    data_sha256: str = ""  # of the training samples; the draws follow their numbers
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16 gradient scaler


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. `tensors[file stem][name]`."""

    path: Path
    manifest: dict[str, Any]
    state: TrainState
    tensors: dict[str, dict[str, torch.Tensor]]


def name_of(step: int) -> str:
    return f"step-{step:07d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save_checkpoint(
    folder: Path,
    state: TrainState,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    texts: Mapping[str, str],
) -> Path:
    """Write `folder`/step-N with one safetensors file per entry of `tensors` and one text file per entry of `texts`.

    OSError (disk full, read-only) leaves the earlier checkpoints as they were and becomes a UserError that says
    how many bytes were needed and are free.
    """
    target = folder / name_of(state.step)
    temporary = folder / f".writing-{target.name}"
    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for stem, group in tensors.items():
            plain = {name: value.detach().cpu().contiguous() for name, value in group.items()}
            save_file(plain, temporary / f"{stem}.safetensors")
        for name, text in {**texts, "state.json": _state_json(state)}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        files = {path.name: _file_entry(path) for path in sorted(temporary.iterdir())}
        manifest = {"step": state.step, "seconds": round(state.seconds, 3), "files": files, **_provenance()}
        manifest["sha256"] = _seal(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        if target.exists():  # a damaged one of the same step that resuming passed over
            shutil.rmtree(target)
        temporary.rename(target)
        sync(folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors in its own
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise UserError(
            f"{target}: the checkpoint could not be written ({error}); it needs about {needed:,} bytes and "
            f"{free:,} are free; earlier checkpoints are untouched. Make room, then run the same command again"
        ) from None
    return target


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest, once every file answers to it.

    DamagedCheckpoint names the first file that is missing, cut short or changed.
    """
    manifest_path = path / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        seal = manifest.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{manifest_path}: missing or unreadable ({error!r})") from None
    if set(manifest) != {"step", "seconds", "files", *_provenance()} or seal != _seal(manifest):
        raise DamagedCheckpoint(f"{manifest_path}: it was changed after it was written")
    for name, entry in files.items():
        file = path / name
        try:
            found = _file_entry(file)
        except OSError as error:
            raise DamagedCheckpoint(f"{file}: missing or unreadable ({error.strerror})") from None
        if found != entry:
            raise DamagedCheckpoint(
                f"{file}: {found['bytes']} bytes with sha256 {found['sha256'][:12]}..., "
                f"the manifest says {entry.get('bytes')} bytes with {str(entry.get('sha256'))[:12]}..."
            )
    return manifest


def load_checkpoint(path: Path, stems: tuple[str, ...] | None = None) -> Checkpoint:
    """Verify, then load the named tensor files (None: all). DamagedCheckpoint where anything is wrong."""
    manifest = verify_checkpoint(path)
    present = {Path(name).stem: path / name for name in manifest["files"] if name.endswith(".safetensors")}
    wanted = present if stems is None else {stem: present[stem] for stem in stems if stem in present}
    if "state.json" not in manifest["files"]:
        raise DamagedCheckpoint(f"{path / 'state.json'}: missing")
    raw = json.loads((path / "state.json").read_text(encoding="utf-8"))
    raw["seconds"] = manifest["seconds"]
    expected = set(TrainState.__dataclass_fields__)
    if set(raw) != expected:
        raise DamagedCheckpoint(
            f"{path / 'state.json'}: keys {sorted(set(raw) ^ expected)} are missing or unknown; "
            "it was written by another version"
        )
    return Checkpoint(path, manifest, TrainState(**raw), {stem: load_file(file) for stem, file in wanted.items()})


def newest_valid(folder: Path, report: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest checkpoint that verifies; every damaged one passed over is reported by name and reason."""
    for path in reversed(_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except DamagedCheckpoint as damage:
            report(f"checkpoint {path.name} is damaged and is passed over: {damage}")
        else:
            return path
    return None


def prune(saved: Path, keep: int, best_step: int | None) -> None:
    """Remove what is older than `saved`, a checkpoint just verified: all but the newest `keep` (it included) and best.

    Later ones, damaged and passed over by resuming, are not counted: they must not push out those that are whole.
    """
    paths = [path for path in _checkpoints(saved.parent) if step_of(path) <= step_of(saved)]
    for path in paths[:-keep]:
        if step_of(path) != best_step:
            shutil.rmtree(path)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed save left behind. Call it while holding the run's lock."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first, by name; other things a user keeps beside them are none."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


def _seal(manifest: Mapping[str, Any]) -> str:
    """sha256 over the manifest, which no other file vouches for."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _state_json(state: TrainState) -> str:
    """All but the wall clock, which a resumed run cannot repeat and which stands in the manifest."""
    values = asdict(state)
    del values["seconds"]
    return json.dumps(values, indent=1)


def _file_entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _provenance() -> dict[str, Any]:
    """The only place of a checkpoint where time, host and versions stand."""
    from reelwright import __version__

    return {
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "versions": {"reelwright": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
