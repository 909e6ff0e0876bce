"""What is done to clips, and to their components, gives clips as good as they were."""

import pytest
import torch
from torch.testing import assert_close

from reelwright.models.codec import PCACodecConfig
from reelwright.models.symmetry import Symmetry, turned_frames

torch.set_num_threads(1)


def test_a_changed_clip_holds_the_same_pixels():
    volume = torch.rand(3, 2, 8, 8)
    seen = set()
    for seed in range(24):
        made = Symmetry.drawn("all", torch.Generator().manual_seed(seed)).of_volume(volume)
        assert made.shape == volume.shape
        assert torch.equal(made.flatten().sort().values, volume.flatten().sort().values)
        seen.add(made.contiguous().numpy().tobytes())
    assert len(seen) > 12
    assert Symmetry.drawn("none", torch.Generator()) == Symmetry()
    assert {Symmetry.drawn("colours", torch.Generator().manual_seed(s))[1:] for s in range(8)} == {(False,) * 4}
    assert Symmetry(turned=True).of_volume(volume[:, :, :4]).shape == (3, 2, 4, 8)


@pytest.mark.parametrize("patch, size", [((2, 4, 4), (4, 16, 16)), ((2, 4, 4), (4, 16, 24)), ((1, 2, 4), (2, 8, 8))])
def test_components_of_a_changed_clip(patch, size):
    """The same whether pixels are changed or their components, where the basis says everything."""
    numbers = 3 * patch[0] * patch[1] * patch[2]
    codec = PCACodecConfig(block=patch, channels=numbers).build()
    generator = torch.Generator().manual_seed(0)
    video = torch.rand((6, 3, *size), generator=generator) * 2 - 1
    codec.fit(list(video.split(1)))
    for seed in range(12):
        symmetry = Symmetry.drawn("all", torch.Generator().manual_seed(seed))
        if patch[1] != patch[2]:
            symmetry = symmetry._replace(turned=False)  # a block that is not square cannot be turned
        pixels = torch.stack([symmetry.of_volume(volume) for volume in video])
        assert_close(symmetry.of_tokens(codec, codec.encode(video).mean), codec.encode(pixels).mean, atol=1e-4, rtol=0)


def test_turned_frames():
    generator = torch.Generator().manual_seed(0)
    video = torch.rand((4, 3, 8, 16, 32), generator=generator)
    assert torch.equal(turned_frames(video, 0.0, generator), video)
    changed = (turned_frames(video, 0.5, generator) != video).any(dim=4).any(dim=3).any(dim=1)  # b f
    assert 6 <= int(changed.sum()) <= 26, "about half of 32 frames"
    ball = torch.zeros(1, 3, 12, 24, 48)
    rows, columns = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(48) - 23.5, indexing="ij")
    ball[:] = torch.exp(-(rows**2 + columns**2) / 18)
    assert_close(turned_frames(ball, 1.0, generator), ball, atol=0.03, rtol=0)
    stripe = torch.exp(-(rows**2) / 8).expand(1, 3, 12, 24, 48)
    turned = turned_frames(stripe, 1.0, generator)
    inner = ((rows**2 + columns**2) < 100).float()
    assert_close((turned * inner).sum((1, 3, 4)), (stripe * inner).sum((1, 3, 4)), atol=0, rtol=0.03)
    assert not torch.allclose(turned, stripe, atol=0.3)
