"""Networks made elsewhere, loaded in one way: what they compute, how they are known, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reelwright.quality import build_features, load_clip
from reelwright.types import UsageError, UserError
from tiny_clip import save_tiny_clip

CPU = torch.device("cpu")


def videos(*shapes: tuple[int, int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_one_clip_has_one_name_in_both_uses(tiny_clip: Path) -> None:
    score, features = load_clip(str(tiny_clip), CPU), build_features(f"clip:{tiny_clip}")
    assert score.sha256 == features.sha256 and len(score.sha256) == 64
    (video,) = videos((16, 40, 56))
    means = score.network.visual_projection(
        score.network.vision_model(pixel_values=score.preprocessing(video)).pooler_output
    ).mean(dim=0)
    assert features.features([video])[0] == pytest.approx(means.detach().numpy(), abs=1e-5)


def test_clip_is_the_mean_of_image_embeddings(tiny_clip: Path) -> None:
    from transformers import CLIPModel

    network = build_features(f"clip:{tiny_clip}")
    assert (network.size, network.dim) == ((32, 32), 32)
    (video,) = videos((16, 40, 56))
    pictures = [Image.fromarray(frame).resize((44, 32), Image.Resampling.BICUBIC) for frame in video]
    pixels = torch.from_numpy(np.stack([np.asarray(p)[:, 6:38] for p in pictures])).permute(0, 3, 1, 2).float() / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(hidden).mean(dim=0)
    assert network.features([video])[0] == pytest.approx(expected.numpy(), abs=1e-5)
    assert network.features([video]) == pytest.approx(network.features([video[::-1]]), abs=1e-5)  # blind to the order
    assert len(network.sha256) == 64 and network.sha256 == build_features(f"clip:{tiny_clip}").sha256


@pytest.fixture(scope="module")
def tiny_videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=16, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("videomae")
    VideoMAEForVideoClassification(config).save_pretrained(folder)
    return folder


def test_videomae_is_the_mean_of_its_tokens(tiny_videomae: Path) -> None:
    from transformers import VideoMAEModel

    network = build_features(f"videomae:{tiny_videomae}")
    assert (network.size, network.frames, network.dim) == ((32, 32), 4, 16)
    (video,) = videos((4, 32, 32))
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    model = VideoMAEModel.from_pretrained(tiny_videomae).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels[None]).last_hidden_state.mean(dim=1)
    assert network.features([video]) == pytest.approx(expected.numpy(), abs=1e-5)
    backwards = network.features([video[::-1]])
    assert np.abs(backwards - network.features([video])).max() > 1e-4  # sees the order


def test_preprocessing_of_the_model_is_followed(tiny_videomae: Path, tmp_path: Path) -> None:
    for file in tiny_videomae.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "size": {"shortest_edge": 32}, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(plain))
    black = np.zeros((4, 32, 32, 3), np.uint8)
    prepared = build_features(f"videomae:{tmp_path}").prepare(black)
    assert prepared.abs().max() == 0
    assert build_features(f"videomae:{tiny_videomae}").prepare(black).abs().max() > 1
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**plain, "crop_size": 16}))
    with pytest.raises(UserError, match="no 32 x 32 pictures"):
        build_features(f"videomae:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "i3d", "i3d:", "inception:x", "x.safetensors", "I3D:x"])
def test_unknown_specifications(spec: str) -> None:
    with pytest.raises(UsageError, match=r"give one of i3d:FILE, i3d-pooled:FILE, clip:DIRECTORY_OR_HUB_ID, videomae"):
        build_features(spec)


def test_a_clip_that_cannot_be_had_is_one_message(tmp_path, tiny_clip, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # spares the retries
    with pytest.raises(UserError, match="no folder here, and as a hub id cannot be loaded.*local directory"):
        load_clip("nobody/none", CPU)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)  # what can be no hub id is not asked for
    for source in ("./nowhere", "no/such/folder", "with a space"):
        with pytest.raises(UserError, match=f"--clip = {source}: no folder {Path(source)}; give"):
            load_clip(source, CPU)
    monkeypatch.undo()
    other = shutil.copytree(tiny_clip, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="holds a t5, no clip"):
        load_clip(str(other), CPU)
    odd = shutil.copytree(tiny_clip, tmp_path / "odd")
    (odd / "preprocessor_config.json").write_text(json.dumps({"crop_size": 64}))
    with pytest.raises(UserError, match="give no 32 x 32 pictures"):
        load_clip(str(odd), CPU)
    pickled = shutil.copytree(tiny_clip, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        load_clip(str(pickled), CPU)


def test_models_that_cannot_be_had(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="features = .*absent: no folder .*; give a model directory or a hub id"):
        build_features(f"clip:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match="holds a clip, no videomae"):
        build_features(f"videomae:{tiny_clip}")
    (tmp_path / "config.json").write_bytes((tiny_clip / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        build_features(f"clip:{tmp_path}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match="nobody/nothing: no folder here, and as a hub id cannot be loaded .* or a hub id while the network is up",
    ):
        build_features("clip:nobody/nothing")


def test_weights_that_miss_a_tensor(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_clip / "config.json").read_bytes())
    tensors = load_file(tiny_clip / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 of its tensors are missing, as visual_projection.weight"):
        build_features(f"clip:{tmp_path}")


def test_a_vision_tower_alone_gives_the_same(tiny_clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    whole = build_features(f"clip:{tiny_clip}")
    tower = CLIPVisionModelWithProjection.from_pretrained(tiny_clip, projection_dim=32)
    tower.save_pretrained(tmp_path)
    (video,) = videos((16, 32, 32))
    assert build_features(f"clip:{tmp_path}").features([video]) == pytest.approx(whole.features([video]), abs=1e-6)


def test_a_network_of_hidden_code_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_clip / "config.json").read_text())
    settings |= {"model_type": "other", "auto_map": {"AutoConfig": "harm.Harm"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "harm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        build_features(f"clip:{tmp_path}")
    assert not (tmp_path / "ran").exists()
