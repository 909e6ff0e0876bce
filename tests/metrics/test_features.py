import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from reelwright.metrics.features import FeatureNetwork, i3d_logits, i3d_pooled, spaced_frames
from reelwright.metrics.i3d import I3D
from reelwright.types import UsageError, UserError

CPU = torch.device("cpu")


class Means(nn.Module):
    """Each channel's mean at every frame, so that what came in can be read off what comes out."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[3, 4]).flatten(1)  # b c*f


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    path = tmp_path_factory.mktemp("script") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return i3d_logits(str(path), CPU)


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


@pytest.mark.full
def test_i3d_from_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = I3D().eval()
    path = tmp_path / "i3d.safetensors"
    save_file(network.state_dict(), path)
    logits, pooled = i3d_logits(str(path), CPU), i3d_pooled(str(path), CPU)
    assert (logits.dim, pooled.dim) == (400, 1024)
    assert logits.sha256 == pooled.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (video,) = videos((16, 224, 224))
    x = (torch.from_numpy(video).permute(3, 0, 1, 2).float() / 127.5 - 1)[None]
    with torch.no_grad():
        expected = network.pooled(x)
        assert pooled.features([video]) == pytest.approx(expected.numpy(), abs=1e-5)
        head = network.logits["conv3d"](expected[..., None, None, None]).flatten(1)
        assert logits.features([video]) == pytest.approx(head.numpy(), abs=1e-5)


def test_files_that_are_no_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent.pt: no such file"):
        i3d_logits(str(tmp_path / "absent.pt"), CPU)
    with pytest.raises(UsageError, match="no such file"):
        i3d_logits(str(tmp_path), CPU)
    path = tmp_path / "weights"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="git-LFS pointer"):
        i3d_logits(str(path), CPU)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="holds pickled weights"):
        i3d_logits(str(path), CPU)
    torch.save({"x": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    for data in (path.read_bytes(), b"", b"nothing of the kind" * 10):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"no safetensors file .* pickle .* save its state dict"):
            i3d_pooled(str(path), CPU)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not the weights of an Inception-I3D"):
        i3d_logits(str(path), CPU)


def test_arrays_that_are_no_video(means: FeatureNetwork) -> None:
    for wrong in (np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8 'f h w 3'"):
            means.features([wrong])
