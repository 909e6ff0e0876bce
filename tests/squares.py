"""Small clips for codecs to be trained on, and what every trained codec promises of them."""

from collections.abc import Sequence

import pytest
import torch

from reelwright.models.trained_codec import TrainedCodec


def moving_squares(
    count: int, size: tuple[int, int, int] = (4, 16, 16), colours: Sequence[tuple[float, float, float]] = ()
) -> list[torch.Tensor]:
    """Float `1 3 f h w`: a square of some colour, or of these by turns, that moves to the right."""
    generator = torch.Generator().manual_seed(0)
    videos = []
    for number in range(count):
        frames, height, width = size
        video = torch.full((1, 3, *size), -0.8)
        top = int(torch.randint(0, height - 8, (1,), generator=generator))
        left = int(torch.randint(0, width - 8, (1,), generator=generator))
        colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        if colours:
            colour = torch.tensor(colours[number % len(colours)])[:, None, None]
        for f in range(frames):
            video[0, :, f, top : top + 5, left + f : left + f + 5] = colour
        videos.append(video)
    return videos


def squared_error(codec: TrainedCodec, videos: list[torch.Tensor]) -> float:
    """Of the round trip, in pixels from -1 to 1."""
    video = torch.cat(videos)
    return float((codec.decode(codec.encode(video).mean) - video).square().mean())


def assert_state_dict_holds_it_whole(codec: TrainedCodec, untrained: TrainedCodec, video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="is not trained"):
        untrained.encode(video)
    untrained.load_state_dict(codec.state_dict())
    assert untrained.fingerprint() == codec.fingerprint()
    assert torch.equal(untrained.encode(video).mean, codec.encode(video).mean)
    assert not any(parameter.requires_grad for parameter in codec.parameters()) and not codec.training
