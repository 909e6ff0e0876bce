from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelwright.bundle import DenoisingLoss, build_bundle, fitted_path
from reelwright.export import export_model
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


def test_the_newest_can_be_had_where_another_is_the_best(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path), best_step=10)
    assert (load_model(str(run.path)).step, load_model(str(run.path), "newest").step) == (10, 20)
    with pytest.raises(UsageError, match=r"--checkpoint newest: .* is not a run directory"):
        load_model(str(run.checkpoints / "step-0000020"), "newest")


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
    found = "not a model: no such file or folder" if name == "nothing" else "not a model"
    with pytest.raises(UsageError, match=f"{found}; give a run directory"):
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


def test_a_tensor_of_another_shape_or_name_is_refused_by_name(tmp_path: Path) -> None:
    path = write_run(tiny_recipe(tmp_path), steps=(10,)).checkpoints / "step-0000010"
    tensors = load_file(path / "ema.safetensors")
    name = next(name for name in tensors if name.startswith("denoiser."))
    for changed, message in (
        ({**tensors, name: tensors[name][..., None]}, f"of another shape .*{name}"),
        ({**tensors, "denoiser.extra": torch.zeros(2)}, "unexpected .*denoiser.extra"),
        ({**tensors, "stranger.x": torch.zeros(2)}, "unexpected .*stranger.x"),
    ):
        save_file(changed, path / "ema.safetensors")
        reseal(path)
        with pytest.raises(UserError, match=rf"ema\.safetensors does not fit its recipe: {message}"):
            load_model(str(path))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder with an export in both forms: model/ and model.safetensors."""
    run = str(write_run(tiny_recipe(tmp_path), steps=(10,)).path)
    export_model(run, tmp_path / "exported" / "model")
    export_model(run, tmp_path / "exported" / "model.safetensors", "safetensors")
    return tmp_path / "exported"


def test_an_export_is_loaded_like_the_run_it_came_from(tmp_path: Path, exported: Path) -> None:
    original = load_model(str(tmp_path / "run"))
    for name in ("model", "model.safetensors"):
        loaded = load_model(str(exported / name))
        assert same(weights_of(loaded), weights_of(original))
        assert same(loaded.bundle.codec.state_dict(), original.bundle.codec.state_dict())
        assert loaded.bundle.text.tokenizer_json() == original.bundle.text.tokenizer_json()
        assert loaded.recipe == original.recipe and loaded.origin == str(exported / name)
        assert (loaded.step, loaded.weights_sha256) == (original.step, original.weights_sha256)
        with pytest.raises(UsageError, match="--raw: .*holds the averaged weights alone"):
            load_model(str(exported / name), raw=True)
        with pytest.raises(UsageError, match="--checkpoint 10: .*has no choice of them"):
            load_model(str(exported / name), "10")


FILES = (
    "recipe.yaml", "model_index.json", "denoiser/model.safetensors", "text/model.safetensors", "text/tokenizer.json",
    "codec/model.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_a_file_of_an_exported_folder_is_named(exported: Path, name: str) -> None:
    file = exported / "model" / name
    whole, draw = file.read_bytes(), random.Random(name)
    for cut in (0, 1, len(whole) // 2, len(whole.rstrip()) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(file)):
            load_model(str(exported / "model"))
    for _ in range(20):
        at = draw.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        if name == "model_index.json" and json_of(file) == json.loads(whole):
            continue  # a flipped blank: the same index
        with pytest.raises(UserError, match=str(file)):
            load_model(str(exported / "model"))
    file.unlink()
    message = "not a run directory|no usable checkpoint" if name == "model_index.json" else f"{file}: missing"
    with pytest.raises(UserError, match=message):
        load_model(str(exported / "model"))


def json_of(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


def test_every_damage_to_the_one_file_is_found(exported: Path) -> None:
    """A flipped bit is found wherever it lies: in the header, in the index in it, in any tensor."""
    file = exported / "model.safetensors"
    whole, draw = file.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    expected = load_model(str(file))
    places = [draw.randrange(8) for _ in range(10)] + [draw.randrange(8, header) for _ in range(60)]
    places += [draw.randrange(header, len(whole)) for _ in range(40)]
    found = 0
    for at in places:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        try:
            loaded = load_model(str(file))
        except UserError as error:
            found += str(file) in str(error)
        else:  # white space between the fields of the index means nothing
            assert at < header and same(weights_of(loaded), weights_of(expected)) and loaded.step == expected.step
    assert found >= len(places) - 5
    for cut in (0, 7, 100, header, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(file)):
            load_model(str(file))


def test_the_card_may_be_edited_and_other_things_may_lie_beside_it(exported: Path) -> None:
    (exported / "model" / "README.md").write_text("my own words")
    (exported / "model" / "samples").mkdir()
    assert load_model(str(exported / "model")).step == 10
    (exported / "model" / "README.md").unlink()
    assert load_model(str(exported / "model")).step == 10


def test_tensors_without_a_model_are_refused_with_what_would_be_one(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(UsageError, match="holds tensors but not the model.*--format safetensors"):
        load_model(str(exported / "model" / "denoiser" / "model.safetensors"))


def reseal(path: Path) -> None:
    """Write the manifest anew for the files as they are: damage that no checksum shows."""
    manifest = json.loads((path / checkpoints.MANIFEST).read_text())
    del manifest["sha256"]
    files = [file for file in sorted(path.iterdir()) if file.name != checkpoints.MANIFEST]
    manifest["files"] = {file.name: checkpoints._file_entry(file) for file in files}
    manifest["sha256"] = checkpoints._seal(manifest)
    (path / checkpoints.MANIFEST).write_text(json.dumps(manifest))
