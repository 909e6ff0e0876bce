from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from reelwright.training import checkpoint
from reelwright.training.checkpoint import (
    MANIFEST,
    DamagedCheckpoint,
    TrainState,
    load_checkpoint,
    newest_valid,
    prune,
    remove_unfinished,
    save_checkpoint,
    step_of,
    verify_checkpoint,
)
from reelwright.types import UserError

TEXTS = {"recipe.yaml": "seed: 0\n", "tokenizer.json": '{"ü": 1}'}


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        stem: {f"layer.{n}": torch.randn(3, n + 1, generator=generator) for n in range(4)} for stem in ("model", "ema")
    } | {"optimizer": {"step.layer": torch.tensor(float(step)), "half": torch.ones(3, dtype=torch.bfloat16)}}


def state(step: int) -> TrainState:
    return TrainState(step, 1.25, 3, 0.5 * step, best_step=5, best_loss=0.1, scaler={"scale": 2.0, "_growth": 1})


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, state(step), tensors(step), TEXTS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def reseal(path: Path) -> None:
    """Write the manifest anew for the files as they are, as somebody who tampers with care would."""
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["sha256"]
    files = [file for file in sorted(path.iterdir()) if file.name != MANIFEST]
    manifest["files"] = {file.name: checkpoint._file_entry(file) for file in files}
    (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": checkpoint._seal(manifest)}))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """The tests here write thousands of files; that syncs happen and when has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def test_everything_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "run" / "checkpoints", 7)
    assert path.name == "step-0000007" and step_of(path) == 7
    loaded = load_checkpoint(path)
    assert loaded.state == state(7)
    assert loaded.tensors.keys() == tensors(7).keys()
    for stem, group in tensors(7).items():
        assert loaded.tensors[stem].keys() == group.keys()
        for name, value in group.items():
            back = loaded.tensors[stem][name]
            assert torch.equal(back, value) and back.dtype == value.dtype and back.shape == value.shape
    assert {name: (path / name).read_text(encoding="utf-8") for name in TEXTS} == TEXTS
    assert load_checkpoint(path, stems=("ema", "nothing")).tensors.keys() == {"ema"}
    assert verify_checkpoint(path)["step"] == 7


def test_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    path = save_checkpoint(tmp_path, TrainState(step=1), {"model": {"t": base.T, "row": base[1].clone()}}, {})
    assert torch.equal(load_checkpoint(path).tensors["model"]["t"], base.T)


def test_files_are_the_same_byte_for_byte_and_name_no_time_or_place(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", 7), save(tmp_path / "elsewhere" / "b", 7)
    for name, data in contents(one).items():
        if name != MANIFEST:
            assert data == (two / name).read_bytes(), name
    slower = save_checkpoint(
        tmp_path / "c", TrainState(**{**vars(state(7)), "seconds": 99.0}), tensors(7), TEXTS
    )  # the wall clock differs between a run and its repetition
    assert {n: d for n, d in contents(slower).items() if n != MANIFEST} == {
        n: d for n, d in contents(one).items() if n != MANIFEST
    }
    assert load_checkpoint(slower).state.seconds == 99.0


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    for name, data in contents(save(tmp_path, 1)).items():
        assert name.endswith((".safetensors", ".json", ".yaml"))
        assert not data.startswith((b"PK", b"\x80")) and b"torch._utils" not in data


def assert_detected(folder: Path, what: str) -> None:
    newest, older = folder / "step-0000020", folder / "step-0000010"
    with pytest.raises(DamagedCheckpoint):
        verify_checkpoint(newest)
        pytest.fail(f"{what}: not detected")
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(newest)
    said: list[str] = []
    assert newest_valid(folder, said.append) == older, what
    assert len(said) == 1 and "step-0000020 is damaged and is passed over" in said[0]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    save(tmp_path, 10)
    save(tmp_path, 20)
    return tmp_path


def test_each_file_cut_short_or_gone_is_detected(two: Path) -> None:
    newest = two / "step-0000020"
    for file in sorted(newest.iterdir()):
        data = file.read_bytes()
        for share in (0, 1, len(data) // 4, len(data) // 2, len(data) * 3 // 4, len(data) - 2, len(data) - 1):
            file.write_bytes(data[:share])
            assert_detected(two, f"{file.name} cut at {share}")
        file.write_bytes(data + b"\0")
        assert_detected(two, f"{file.name} longer")
        file.unlink()
        assert_detected(two, f"{file.name} gone")
        file.write_bytes(data)
    assert newest_valid(two) == newest


@pytest.mark.parametrize("flips", [200, pytest.param(1000, marks=pytest.mark.full)])
def test_each_flipped_bit_is_detected(two: Path, flips: int) -> None:
    newest, chance = two / "step-0000020", random.Random(0)
    files = sorted(newest.iterdir())
    for number in range(flips):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        position, bit = chance.randrange(len(data)), chance.randrange(8)
        data[position] ^= 1 << bit
        before = file.read_bytes()
        file.write_bytes(data)
        assert_detected(two, f"{file.name}: bit {bit} of byte {position}")
        file.write_bytes(before)
    assert newest_valid(two) == newest


def test_when_all_are_damaged_none_is_used_and_each_is_named(two: Path) -> None:
    for path in two.iterdir():
        (path / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    assert newest_valid(two, said.append) is None
    assert [name in text for name, text in zip(("step-0000020", "step-0000010"), said, strict=True)] == [True, True]
    assert newest_valid(two / "nothing") is None


@pytest.mark.parametrize("key", [f.name for f in fields(TrainState) if f.name != "seconds"])
def test_each_key_missing_from_the_state_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path = save(tmp_path, 1)
    values = json.loads((path / "state.json").read_text())
    del values[key]
    (path / "state.json").write_text(json.dumps(values))
    reseal(path)
    verify_checkpoint(path)
    with pytest.raises(DamagedCheckpoint, match=rf"state\.json.*'{key}'"):
        load_checkpoint(path)


def test_a_state_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    values = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**values, "epoch": 3}))
    reseal(path)
    with pytest.raises(DamagedCheckpoint, match="'epoch'.*another version"):
        load_checkpoint(path)
    (path / "state.json").unlink()
    reseal(path)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: missing"):
        load_checkpoint(path)


@pytest.mark.parametrize("key", ["step", "seconds", "files", "written", "host", "versions"])
def test_each_key_missing_from_the_manifest_is_refused(two: Path, key: str) -> None:
    manifest = json.loads((two / "step-0000020" / MANIFEST).read_text())
    del manifest[key]
    (two / "step-0000020" / MANIFEST).write_text(json.dumps(manifest))
    assert_detected(two, key)


def test_a_file_the_manifest_does_not_know_is_not_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    shutil.copy(path / "ema.safetensors", path / "codec.safetensors")
    assert load_checkpoint(path).tensors.keys() == tensors(1).keys()


def test_other_things_among_the_checkpoints_are_left_alone(two: Path) -> None:
    shutil.copytree(two / "step-0000020", two / "step-0000020-before-my-change")
    (two / "step-best").mkdir()
    assert newest_valid(two) == two / "step-0000020"
    prune(two / "step-0000020", 1, None)
    assert sorted(path.name for path in two.iterdir()) == [
        "step-0000020", "step-0000020-before-my-change", "step-best",
    ]  # fmt: skip


# Faults while a checkpoint is written


class Killed(BaseException):
    """What `kill -9` is to the code it hits: nothing can catch it, nothing is tidied up."""


class Fault:
    """Strikes once, at the chosen instant: before, in the middle of, or after one call that reaches the disk."""

    def __init__(self, strike_at: int, error: BaseException) -> None:
        self.strike_at, self.error, self.instants = strike_at, error, 0

    def _instant(self, spoil: Callable[[], None] = lambda: None) -> None:
        self.instants += 1
        if self.instants == self.strike_at:
            spoil()
            raise self.error

    def around(self, call: Callable[..., Any], written: Callable[..., Path] | None = None) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._instant()
            result = call(*args, **kwargs)
            if written is not None:
                file = written(*args)
                self._instant(lambda: os.truncate(file, file.stat().st_size // 2))
            self._instant()
            return result

        return wrapped


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, BaseException], Fault]]:
    """`inject(n, error)`: `error` is raised at the n-th instant of the next save; 0: never, only counts."""

    def install(strike_at: int, error: BaseException) -> Fault:
        monkeypatch.undo()
        fault = Fault(strike_at, error)
        for name in ("fsync", "rename", "open", "close", "mkdir", "rmdir", "unlink"):
            monkeypatch.setattr(os, name, fault.around(getattr(os, name)))
        monkeypatch.setattr(Path, "write_text", fault.around(Path.write_text, lambda path, *_: path))
        save_file = fault.around(checkpoint.save_file, lambda _, path: path)
        monkeypatch.setattr(checkpoint, "save_file", save_file)
        return fault

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("make", [lambda: OSError(errno.ENOSPC, "No space left on device"), Killed])
@pytest.mark.parametrize("replaces_damaged", [False, True])
def test_a_fault_at_any_instant_of_a_save_leaves_the_last_one_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inject: Callable[[int, BaseException], Fault],
    make: Callable[[], BaseException],
    replaces_damaged: bool,
) -> None:
    def start() -> Path:
        folder = tmp_path / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, 10)
        if replaces_damaged:
            (save(folder, 20) / "model.safetensors").write_bytes(b"")
        return folder

    folder = start()
    fault = inject(0, make())
    save(folder, 20)
    monkeypatch.undo()
    instants = fault.instants
    assert instants > 40
    for strike_at in range(1, instants + 1):
        folder = start()
        older = contents(folder / "step-0000010")
        inject(strike_at, make())
        failed = False
        try:
            save(folder, 20)
        except Killed:
            failed = True
        except UserError as error:
            failed = True
            assert "needs about" in str(error) and "are free" in str(error), strike_at
        finally:
            monkeypatch.undo()
        found = newest_valid(folder)
        assert found is not None and (failed or found.name == "step-0000020"), strike_at
        assert contents(folder / "step-0000010") == older, strike_at
        remove_unfinished(folder)
        assert not list(folder.glob(".*"))
        save(folder, 20)
        assert newest_valid(folder) == folder / "step-0000020", strike_at


def test_all_is_synced_before_the_name_is_given_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename = os.rename

    def note_rename(source: Any, target: Any) -> None:
        done.append(f"rename {Path(source).name} {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(
        os, "fsync", lambda descriptor: done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    monkeypatch.setattr(os, "rename", note_rename)
    files = {path.name for path in save(tmp_path / "checkpoints", 7).iterdir()}
    assert set(done[: len(files)]) == files and MANIFEST in files
    assert done[len(files) :] == [
        ".writing-step-0000007", "rename .writing-step-0000007 step-0000007", "checkpoints",
    ]  # fmt: skip


def test_the_message_of_a_full_disk_says_what_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    needed = sum(t.numel() * t.element_size() for group in tensors(20).values() for t in group.values())

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 12345, 12345))
    with pytest.raises(
        UserError, match=rf"(?s)step-0000020.*No space left.*about {needed:,} bytes and 12,345 are free"
    ):
        save(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000010"], "nothing half-written stays"


def test_a_read_only_folder_is_said_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_what_a_kill_left_is_removed_and_nothing_else(two: Path) -> None:
    (two / ".writing-step-0000030").mkdir()
    (two / ".writing-step-0000030" / "model.safetensors").write_bytes(b"half")
    before = contents(two / "step-0000020")
    remove_unfinished(two)
    assert sorted(path.name for path in two.iterdir()) == ["step-0000010", "step-0000020"]
    assert contents(two / "step-0000020") == before


# Pruning


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [50]), (2, None, [40, 50]), (9, None, [10, 20, 30, 40, 50]), (2, 10, [10, 40, 50]),
        (1, 50, [50]), (2, 40, [40, 50]), (1, 20, [20, 50]), (1, 999, [50]),
    ],
)  # fmt: skip
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    for step in range(10, 60, 10):
        saved = save(tmp_path, step)
    prune(saved, keep, best)
    assert sorted(step_of(path) for path in tmp_path.iterdir()) == left


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_does_not_push_out_whole_ones(tmp_path: Path, keep: int) -> None:
    """Resumed from 10 because 40 and 50 are damaged, stopped by a signal at 15: the run must still be there."""
    save(tmp_path, 10)
    for step in (40, 50):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"")
    prune(save(tmp_path, 15), keep, None)
    assert newest_valid(tmp_path) == tmp_path / "step-0000015"
    assert (tmp_path / "step-0000010").exists() == (keep == 2)
