"""What may be done to a clip for a codec to be trained on it too: colours exchanged, mirrored, transposed, reversed.

All of that is linear, so that it is done to components too: a product with a small matrix in place of decoding,
changing and encoding pixels again.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
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
    transposed: bool = False  # height and width exchanged, where they are equal

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
        if self.transposed and not square:
            return self._replace(transposed=False).of_tokens(components, tokens)
        assert components.basis is not None, "principal components have a basis"
        block = (3, *components.config.block)
        basis = self.of_volume(components.basis.unflatten(0, block)).flatten(0, 3)  # numbers k: of changed blocks
        mean = self.of_volume(components.mean.view(block)).flatten()  # numbers
        product = components.basis.T @ basis  # k k
        offset = components.basis.T @ (mean - components.mean)  # k
        moved = self._moved(tokens, frames=2).movedim(1, -1) / components.gain  # b f h w k
        return ((moved @ product.T + offset) * components.gain).movedim(-1, 1).contiguous()

    def _moved(self, x: Tensor, frames: int) -> Tensor:
        """Mirrored, reversed and transposed along axis `frames` and the two after it."""
        wanted = enumerate((self.backward, self.vertical, self.horizontal), start=frames)
        x = x.flip([axis for axis, flipped in wanted if flipped])
        transposed = self.transposed and x.shape[frames + 1] == x.shape[frames + 2]
        return x.transpose(frames + 1, frames + 2) if transposed else x
