"""Small clips for codecs to be trained on."""

import torch


def moving_squares(count: int, size: tuple[int, int, int] = (4, 16, 16)) -> list[torch.Tensor]:
    """Float `1 3 f h w`: a square of some colour that moves to the right or down."""
    generator = torch.Generator().manual_seed(0)
    videos = []
    for _ in range(count):
        frames, height, width = size
        video = torch.full((1, 3, *size), -0.8)
        top = int(torch.randint(0, height - 8, (1,), generator=generator))
        left = int(torch.randint(0, width - 8, (1,), generator=generator))
        colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        for f in range(frames):
            video[0, :, f, top : top + 5, left + f : left + f + 5] = colour
        videos.append(video)
    return videos
