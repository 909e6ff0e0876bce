import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelwright.metrics.features import FeatureNetwork, build_features, spaced_frames
from reelwright.metrics.i3d import I3D
from reelwright.types import UsageError, UserError


class Means(nn.Module):
    """Each channel's mean at every frame, so that what came in can be read off what comes out."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[3, 4]).flatten(1)  # b c*f


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    path = tmp_path_factory.mktemp("script") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return build_features(f"i3d:{path}")


def videos(*shapes: tuple[int, int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_frames_stand_evenly() -> None:
    assert spaced_frames(16, 16).tolist() == list(range(16))
    assert spaced_frames(31, 16).tolist() == list(range(0, 31, 2))
    assert spaced_frames(3, 5).tolist() == [0, 1, 1, 2, 2]
    assert spaced_frames(1, 4).tolist() == [0, 0, 0, 0]
    assert spaced_frames(9, 1).tolist() == [4]
    for present in range(1, 70):
        chosen = spaced_frames(present, 16)
        assert chosen[0] == 0 and chosen[-1] == present - 1 and (np.diff(chosen) >= 0).all()


def test_what_a_network_sees(means: FeatureNetwork) -> None:
    assert (means.size, means.frames, means.dim) == ((224, 224), 16, 48)
    grey = np.arange(16, dtype=np.uint8)[:, None, None, None] * 17 + np.zeros((16, 20, 30, 3), np.uint8)
    values = means.features([grey])
    assert values.dtype == np.float64 and values.shape == (1, 48)
    expected = np.tile(np.arange(16) * 17 / 127.5 - 1, 3)  # black is -1, white is 1
    assert values[0] == pytest.approx(expected, abs=1e-5)


def test_pictures_are_resized_whole(means: FeatureNetwork) -> None:
    (video,) = videos((16, 48, 96))
    picture = torch.from_numpy(video).permute(0, 3, 1, 2).double()
    resized = F.interpolate(picture, size=(224, 224), mode="bilinear", align_corners=False) / 127.5 - 1
    expected = resized.mean(dim=(2, 3)).T.flatten().numpy()
    assert means.features([video])[0] == pytest.approx(expected, abs=1e-5)


def test_batches_do_not_matter_and_progress_is_told(means: FeatureNetwork) -> None:
    several = videos((16, 8, 8), (5, 12, 9), (40, 8, 8), (1, 30, 30), (16, 224, 224), (7, 9, 9))
    steps: list[tuple[int, int]] = []
    together = means.features(several, on_step=lambda done, total: steps.append((done, total)))
    alone = np.concatenate([means.features([video]) for video in several])
    assert together == pytest.approx(alone, abs=1e-6)
    assert steps == [(4, 6), (6, 6)]
    assert means.features([]).shape == (0, 48)


def test_protocol_says_what_makes_figures_comparable(means: FeatureNetwork) -> None:
    for part in ("means.pt", means.sha256[:12], "48 features", "16 frames", "224 x 224", "not antialiased"):
        assert part in means.protocol


def test_i3d_from_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = I3D().eval()
    path = tmp_path / "i3d.safetensors"
    save_file(network.state_dict(), path)
    logits, pooled = build_features(f"i3d:{path}"), build_features(f"i3d-pooled:{path}")
    assert (logits.dim, pooled.dim) == (400, 1024)
    assert logits.sha256 == pooled.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (video,) = videos((16, 224, 224))
    x = (torch.from_numpy(video).permute(3, 0, 1, 2).float() / 127.5 - 1)[None]
    with torch.no_grad():
        expected = network.pooled(x)
        assert pooled.features([video]) == pytest.approx(expected.numpy(), abs=1e-5)
        head = network.logits["conv3d"](expected[..., None, None, None]).flatten(1)
        assert logits.features([video]) == pytest.approx(head.numpy(), abs=1e-5)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 99},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_is_the_mean_of_image_embeddings(tiny_clip: Path) -> None:
    from transformers import CLIPModel

    network = build_features(f"clip:{tiny_clip}")
    assert (network.size, network.dim) == ((32, 32), 12)
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


def test_files_that_are_no_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file .*absent.pt"):
        build_features(f"i3d:{tmp_path / 'absent.pt'}")
    with pytest.raises(UsageError, match="no file"):
        build_features(f"i3d:{tmp_path}")
    path = tmp_path / "weights"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="git-LFS pointer"):
        build_features(f"i3d:{path}")
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="holds pickled weights"):
        build_features(f"i3d:{path}")
    torch.save({"x": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    for data in (path.read_bytes(), b"", b"nothing of the kind" * 10):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is no safetensors file .* pickle .* save its state dict"):
            build_features(f"i3d-pooled:{path}")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not the weights of an Inception-I3D"):
        build_features(f"i3d:{path}")


def test_models_that_cannot_be_had(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is no folder; give a model directory or a hub id"):
        build_features(f"clip:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match="it holds a clip, which is not videomae"):
        build_features(f"videomae:{tiny_clip}")
    (tmp_path / "config.json").write_bytes((tiny_clip / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="give a local directory with config.json and safetensors"):
        build_features(f"clip:{tmp_path}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing: cannot be loaded .* or a hub id while the network is up"):
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
    tower = CLIPVisionModelWithProjection.from_pretrained(tiny_clip, projection_dim=12)
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


def test_arrays_that_are_no_video(means: FeatureNetwork) -> None:
    for wrong in (np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8 'f h w 3'"):
            means.features([wrong])
