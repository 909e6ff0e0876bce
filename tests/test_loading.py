from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelwright.bundle import DenoisingLoss, build_bundle, fitted_path
from reelwright.loading import load_model
from reelwright.training import checkpoint as checkpoints
from reelwright.training.checkpoint import DamagedCheckpoint
from reelwright.types import UsageError, UserError
from tiny_models import fitted_parts, tiny_recipe, write_run


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights_of(model: Any) -> dict[str, Tensor]:
    return DenoisingLoss(model.bundle).state_dict()


def test_a_run_means_its_average_at_the_newest_checkpoint(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path))
    newest = run.checkpoints / "step-0000020"
    loaded = load_model(str(run.path))
    assert (loaded.step, loaded.origin, loaded.warnings) == (20, str(newest), ())
    assert same(weights_of(loaded), load_file(newest / "ema.safetensors"))
    assert loaded.recipe == tiny_recipe(tmp_path)
    raw = load_model(str(run.path), raw=True)
    assert same(weights_of(raw), load_file(newest / "model.safetensors"))
    assert raw.weights_sha256 != loaded.weights_sha256
    assert same(loaded.bundle.codec.state_dict(), load_file(newest / "codec.safetensors"))


def test_a_checkpoint_can_be_named(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path))
    wanted = load_file(run.checkpoints / "step-0000010" / "ema.safetensors")
    for model, name in ((run.path, "10"), (run.path, "step-0000010"), (run.checkpoints / "step-0000010", None)):
        loaded = load_model(str(model), name)
        assert loaded.step == 10 and same(weights_of(loaded), wanted)
    with pytest.raises(UsageError, match=r"--checkpoint 15: not in .*; there are: step-0000010, step-0000020"):
        load_model(str(run.path), "15")
    with pytest.raises(UsageError, match=r"--checkpoint 10: .* is not a run directory"):
        load_model(str(run.checkpoints / "step-0000010"), "10")


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path))
    (run.checkpoints / "step-0000020" / "ema.safetensors").write_bytes(b"short")
    loaded = load_model(str(run.path))
    assert loaded.step == 10 and len(loaded.warnings) == 1
    assert "step-0000020 is damaged and is passed over" in loaded.warnings[0]
    with pytest.raises(DamagedCheckpoint, match=r"ema\.safetensors: 5 bytes"):
        load_model(str(run.path), "20")
    (run.checkpoints / "step-0000010" / "recipe.yaml").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no usable checkpoint \(.*step-0000020.*step-0000010.*recipe\.yaml"):
        load_model(str(run.path))


def test_the_best_checkpoint_is_used_where_one_is_tracked(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path), steps=(10, 20, 30), best_step=10)
    assert load_model(str(run.path)).step == 10
    (run.checkpoints / "step-0000010" / "ema.safetensors").write_bytes(b"short")
    loaded = load_model(str(run.path))
    assert loaded.step == 30 and "the best checkpoint is damaged, step-0000030 is used instead" in loaded.warnings[0]


def test_a_recipe_is_a_model_of_random_weights_and_says_so(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    codec, tokenizer = fitted_parts(recipe)
    fitted_path(recipe, "codec").parent.mkdir(parents=True)
    save_file(codec, fitted_path(recipe, "codec"))
    fitted_path(recipe, "text").write_text(tokenizer)
    recipe.save(tmp_path / "recipe.yaml")
    loaded = load_model(str(tmp_path / "recipe.yaml"))
    assert loaded.step is None and len(loaded.warnings) == 1 and "weights are random" in loaded.warnings[0]
    assert same(weights_of(loaded), DenoisingLoss(build_bundle(recipe)).state_dict())
    with pytest.raises(UsageError, match="is not a run directory"):
        load_model(str(tmp_path / "recipe.yaml"), "10")


@pytest.mark.parametrize("name", ["nothing", "empty", "file.mp4"])
def test_what_is_no_model_is_refused_with_what_would_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="not a model; give a run directory"):
        load_model(str(tmp_path / name))


def test_a_run_without_a_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path), steps=())
    with pytest.raises(UsageError, match="none has been saved yet.*reelwright train"):
        load_model(str(run.path))


@pytest.mark.parametrize("stem", ["ema", "codec"])
def test_each_tensor_missing_from_a_checkpoint_is_refused_by_name(tmp_path: Path, stem: str) -> None:
    path = write_run(tiny_recipe(tmp_path), steps=(10,)).checkpoints / "step-0000010"
    tensors = load_file(path / f"{stem}.safetensors")
    for name in sorted(tensors)[:: 1 if stem == "codec" else 9]:
        save_file({key: value for key, value in tensors.items() if key != name}, path / f"{stem}.safetensors")
        reseal(path)
        with pytest.raises(UserError, match=rf"(?s){stem}\.safetensors does not fit its recipe.*{name}"):
            load_model(str(path))


@pytest.mark.parametrize("name", ["codec.safetensors", "tokenizer.json"])
def test_a_part_left_out_of_a_checkpoint_is_not_taken_from_the_cache(tmp_path: Path, name: str) -> None:
    recipe = tiny_recipe(tmp_path)
    codec, tokenizer = fitted_parts(recipe)
    fitted_path(recipe, "codec").parent.mkdir(parents=True)
    save_file(codec, fitted_path(recipe, "codec"))
    fitted_path(recipe, "text").write_text(tokenizer)
    path = write_run(recipe, steps=(10,)).checkpoints / "step-0000010"
    (path / name).unlink()
    reseal(path)
    with pytest.raises(UserError, match=name):
        load_model(str(path))


def reseal(path: Path) -> None:
    """Write the manifest anew for the files as they are: damage that no checksum shows."""
    manifest = json.loads((path / checkpoints.MANIFEST).read_text())
    del manifest["sha256"]
    files = [file for file in sorted(path.iterdir()) if file.name != checkpoints.MANIFEST]
    manifest["files"] = {file.name: checkpoints._file_entry(file) for file in files}
    manifest["sha256"] = checkpoints._seal(manifest)
    (path / checkpoints.MANIFEST).write_text(json.dumps(manifest))
