"""What users get wrong: one message on stderr, the right exit code, and everything on disk as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def data(tmp_path: Path, shapes_clips: Path) -> Path:
    return Path(shutil.copytree(shapes_clips, tmp_path / "data"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(result: Any, code: int, *told: str) -> None:
    """One message of ours, nothing on stdout, no traceback."""
    assert result.code == code, result
    assert result.out == "" and "Traceback" not in result.err
    assert result.err.count("reelwright: ") == 1 and result.err.startswith("reelwright: ")
    for words in told:
        assert words in result.err


def test_an_unknown_key(run_cli, write_recipe, tmp_path):
    for command in ("inspect", "prepare", "train"):
        result = run_cli(command, write_recipe("train.learnig_rate=1"))
        refused(result, 2, "unknown key 'train.learnig_rate'", "did you mean 'learning_rate'", "recipe.yaml")
    assert not (tmp_path / "run").exists()


def test_a_missing_folder(run_cli, write_recipe, tmp_path):
    for command in ("inspect", "prepare", "train"):
        refused(run_cli(command, write_recipe(data=tmp_path / "absent")), 2, f"data.path = {tmp_path / 'absent'}")
    refused(run_cli("inspect", tmp_path / "absent"), 2, str(tmp_path / "absent"))


def test_captions_that_name_absent_files(run_cli, write_recipe, data, tmp_path):
    captions = {f"gone-{n}.mp4": f"caption {n}" for n in range(5)} | json.loads((data / "captions.json").read_text())
    (data / "captions.json").write_text(json.dumps(captions))
    before = contents(data)
    inspected = run_cli("inspect", write_recipe(data=data))
    assert inspected.code == 0 and "24 used, 5 dropped" in inspected.out and "gone-3.mp4" in inspected.out
    refused(run_cli("prepare", write_recipe(data=data, cache=tmp_path / "c")), 1, "5 of 29 clips", "gone-0.mp4")
    allowed = run_cli("prepare", write_recipe("data.max_dropped=0.2", data=data, cache=tmp_path / "c"))
    assert allowed.code == 0 and "24 encoded now" in allowed.out and "dropped gone-4.mp4" in allowed.out
    assert contents(data) == before


@pytest.mark.parametrize("kind", ["text", "truncated", "empty"])
def test_a_file_that_is_no_video(run_cli, write_recipe, data, tmp_path, kind):
    bad = data / "videos" / "00002.mp4"
    bad.write_bytes({"text": b"hello, I am a text file\n", "truncated": bad.read_bytes()[:700], "empty": b""}[kind])
    before = contents(data)
    result = run_cli("prepare", write_recipe(data=data, cache=tmp_path / "cache"))
    assert result.code == 0 and "dropped 00002.mp4: " in result.out and "1 clips dropped; 23 encoded" in result.out
    assert "Traceback" not in result.err and contents(data) == before
    strict = run_cli("train", write_recipe("data.max_dropped=0", data=data, cache=tmp_path / "cache"))
    refused(strict, 1, "1 of 24 clips", "00002.mp4")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.frames=6", "frames = 6 does not fit the codec: it must be a multiple of 4; use 4 or 8"),
        ("data.height=36", "height = 36 does not fit the codec: it must be a multiple of 8; use 32 or 40"),
        ("model.patch=[1, 3, 3]", "height = 4 latents do not fit model.patch"),
    ],
)
def test_frames_that_fit_neither_codec_nor_patch(run_cli, write_recipe, tmp_path, setting, told):
    for command in ("prepare", "train"):
        result = run_cli(command, write_recipe(setting, cache=tmp_path / "cache"))
        refused(result, 2, told)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_changed_recipe_on_an_old_run_directory(run_cli, write_recipe, tmp_path):
    assert run_cli("train", write_recipe("train.steps=2")).code == 0
    before = contents(tmp_path / "run")
    result = run_cli("train", write_recipe("train.steps=2", "model.width=64", "train.batch_size=2"))
    refused(result, 2, "model.width: 32 in the run, 64 now", "train.batch_size: 4 in the run, 2 now", "--fork")
    assert contents(tmp_path / "run") == before


def test_broken_yaml_and_no_recipe_at_all(run_cli, tmp_path):
    for text, told in {"a: [1": "not valid YAML", "- 1": "holds a list", "{}": "run_dir: required"}.items():
        (tmp_path / "r.yaml").write_text(text)
        refused(run_cli("train", tmp_path / "r.yaml"), 2, told, "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00binary")
    refused(run_cli("train", tmp_path / "r.yaml"), 2, "cannot be read")


def test_a_run_directory_that_cannot_be_made(run_cli, write_recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(run_cli("train", write_recipe(f"run_dir={tmp_path / 'file'}")), 2, "run_dir = ")
    refused(run_cli("prepare", write_recipe(cache=tmp_path / "file")), 1, "cache folder cannot be made")
    assert (tmp_path / "file").read_text() == "in the way"
