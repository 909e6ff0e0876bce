"""What a directory of weights must be, and what is said of one that is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from family_parity import family_recipe
from reelwright.bundle import build_bundle
from reelwright.pretrained.wan import WanConfig
from reelwright.types import UsageError, UserError
from tiny_families import save_wan

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture
def model(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def failure(tmp_path: Path, model: Path, **groups) -> str:
    with pytest.raises(UserError) as caught:
        build_bundle(family_recipe(tmp_path, "wan", model, **groups))
    return str(caught.value)


def test_another_class_is_never_built(model, tmp_path):
    path = model / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "LTXVideoTransformer3DModel"}))
    said = failure(tmp_path, model)
    assert "'LTXVideoTransformer3DModel'" in said and "only WanTransformer3DModel can be used here" in said


def test_an_autoencoder_of_an_unknown_class_is_refused(model, tmp_path):
    path = model / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "os.system"}))
    assert "codec.model" in failure(tmp_path, model) and "'os.system'" in failure(tmp_path, model)


def test_missing_shards_are_counted_and_named(model, tmp_path):
    folder = model / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").rename(
        folder / "diffusion_pytorch_model-00001-of-00002.safetensors"
    )
    names = {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    said = failure(tmp_path, model)
    assert "1 of 2 weight files" in said and "00002-of-00002.safetensors" in said


def test_lfs_pointers_and_pickles_are_named(model, tmp_path):
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git-LFS pointer" in failure(tmp_path, model) and "git lfs pull" in failure(tmp_path, model)
    weights.rename(weights.with_suffix(".bin"))
    weights.with_suffix(".bin").write_bytes(b"\x80\x02}q\x00.")
    assert "is a pickle, which can run code" in failure(tmp_path, model)


def test_missing_weights_are_named(model, tmp_path):
    for file in (model / "transformer").glob("*.safetensors"):
        file.unlink()
    said = failure(tmp_path, model)
    assert f"{model / 'transformer'}: holds no weights (*.safetensors); download the model again" in said


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_broken_config_is_named(model, tmp_path, text):
    (model / "transformer" / "config.json").write_text(text)
    assert "config.json" in failure(tmp_path, model)


def test_no_such_folder(tmp_path):
    assert "no folder" in failure(tmp_path, tmp_path / "nowhere") or "missing" in failure(
        tmp_path, tmp_path / "nowhere"
    )


def test_a_codec_or_text_of_another_model_is_refused(model, tmp_path):
    config = family_recipe(tmp_path, "wan", model).model
    with pytest.raises(UsageError, match="takes 16 latent channels, but the codec makes 12"):
        config.build(channels=12, text_width=32)
    with pytest.raises(UsageError, match="takes text of width 32, but text.type makes 31"):
        config.build(channels=16, text_width=31)
    with pytest.raises(UsageError, match="model.config describes a network from scratch"):
        WanConfig.parse({"model": str(model), "config": {"num_layers": 1}}).build(channels=16, text_width=32)


def test_a_recipe_names_only_the_family_and_its_place(model, tmp_path):
    recipe = family_recipe(tmp_path, "wan", model, sampling={"steps": 7})
    plain = recipe.plain()
    assert plain["codec"]["type"] == "video_autoencoder" and plain["text"]["type"] == "t5"
    assert plain["objective"]["shift"] == 3.0 and plain["sampling"]["steps"] == 7
    assert type(recipe).parse(plain) == recipe  # what is saved in a run says all of it
