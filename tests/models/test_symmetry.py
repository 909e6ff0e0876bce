"""What is done to clips, and to their components, gives clips as good as they were."""

import pytest
import torch
from torch.testing import assert_close

from reelwright.models.codec import PCACodecConfig
from reelwright.models.symmetry import Symmetry

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
    assert Symmetry(transposed=True).of_volume(volume[:, :, :4]).shape == (3, 2, 4, 8)


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
            symmetry = symmetry._replace(transposed=False)  # a block that is not square cannot be
        pixels = torch.stack([symmetry.of_volume(volume) for volume in video])
        assert_close(symmetry.of_tokens(codec, codec.encode(video).mean), codec.encode(pixels).mean, atol=1e-4, rtol=0)
