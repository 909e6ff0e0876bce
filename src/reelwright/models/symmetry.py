"""What may be done to a clip for a codec to be trained on it too: colours exchanged, mirrored, turned, reversed.

All of that is linear, so that it is done to components too: a product with a small matrix in place of decoding,
changing and encoding pixels again. Turning by any angle is done to pixels, once.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from reelwright.models.codec import BlockCodec
from reelwright.models.trained_codec import Augment


class Symmetry(NamedTuple):
    """What is done to a clip, or to the components of one. What it makes is as good a clip to draw.

    A codec is of pictures, not of what they show. With colours exchanged, a colour that a kind of object never had in
    the data is nothing new to it.
    """

    colours: tuple[int, int, int] = (0, 1, 2)
    backward: bool = False
    vertical: bool = False
    horizontal: bool = False
    turned: bool = False  # height and width exchanged, where they are equal

    @classmethod
    def drawn(cls, augment: Augment, generator: torch.Generator) -> Self:
        red, green, blue = torch.randperm(3, generator=generator).tolist()
        rest = (torch.rand(4, generator=generator) < 0.5).tolist()
        return cls() if augment == "none" else cls((red, green, blue), *(rest if augment == "all" else ()))

    def of_volume(self, volume: Tensor) -> Tensor:
        """`3 f h w ...` -> the same shape."""
        return self._moved(volume[list(self.colours)], frames=1)

    def of_tokens(self, components: BlockCodec, tokens: Tensor) -> Tensor:
        """Components `b k f h w` of clips -> those of the changed clips, as far as the basis can say them."""
        if self == Symmetry():
            return tokens
        square = components.config.block[1] == components.config.block[2] and tokens.shape[3] == tokens.shape[4]
        if self.turned and not square:
            return self._replace(turned=False).of_tokens(components, tokens)
        assert components.basis is not None, "principal components have a basis"
        block = (3, *components.config.block)
        basis = self.of_volume(components.basis.unflatten(0, block)).flatten(0, 3)  # numbers k: of changed blocks
        mean = self.of_volume(components.mean.view(block)).flatten()  # numbers
        product = components.basis.T @ basis  # k k
        offset = components.basis.T @ (mean - components.mean)  # k
        moved = self._moved(tokens, frames=2).movedim(1, -1) / components.gain  # b f h w k
        return ((moved @ product.T + offset) * components.gain).movedim(-1, 1).contiguous()

    def _moved(self, x: Tensor, frames: int) -> Tensor:
        """Mirrored, reversed and turned along axis `frames` and the two after it."""
        wanted = enumerate((self.backward, self.vertical, self.horizontal), start=frames)
        x = x.flip([axis for axis, flipped in wanted if flipped])
        turned = self.turned and x.shape[frames + 1] == x.shape[frames + 2]
        return x.transpose(frames + 1, frames + 2) if turned else x


def turned_frames(video: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`b 3 f h w` with about `share` of the frames, drawn at random, turned about their middle by any angle each.

    What comes in at the corners repeats the border.
    """
    b, _, f, height, width = video.shape
    chosen = torch.rand(b * f, generator=generator) < share
    angle = torch.rand(b * f, generator=generator)[chosen] * 2 * math.pi
    if not len(angle):
        return video
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # in units of half the picture an axis, hence the picture's proportions
    rows = [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)]
    frames = video.transpose(1, 2).flatten(0, 1).clone()  # b*f 3 h w
    picked = frames[chosen.to(video.device)]
    grid = F.affine_grid(torch.stack(rows, 1).to(video.device), list(picked.shape), align_corners=False)
    frames[chosen.to(video.device)] = F.grid_sample(picked, grid, padding_mode="border", align_corners=False)
    return frames.unflatten(0, (b, f)).transpose(1, 2)
