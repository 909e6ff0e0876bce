"""How the autoencoder is trained on clips: one loop over their principal components, mirrored and recoloured.

The components are computed once. Exchanging colours, mirroring, turning and reversing are linear, so that they are done
to components too: a product with a small matrix in place of decoding, changing and encoding pixels again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelwright.models.codec import BlockCodec, pixels_to_video, video_to_pixels
from reelwright.randomness import keyed_generator
from reelwright.types import UserError

if TYPE_CHECKING:
    from reelwright.models.autoencoder import Augment, Autoencoder

MEMORY_BYTES = 1 << 30  # of clips held as pixels while training
WARMUP_STEPS = 100
FINAL_RATE = 0.02  # of the learning rate, where the cosine ends
GRADIENT_NORM = 1.0
MEASURED_CLIPS = 512  # at most, for the latents' final mean and deviation
SMALLEST_VARIANCE = 1e-4  # of a latent channel within a batch
HELD_BYTES = 12 << 20  # of clips in one tensor, or a single clip; their components are computed together


def train_autoencoder(
    codec: Autoencoder, videos: Iterable[Tensor], on_step: Callable[[int, int], None], dtype: torch.dtype
) -> None:
    """Everything of `codec` that is fitted or trained: components, weights, the latents' mean and deviation."""
    config, device = codec.config, codec.latent_std.device
    clips = _held_in_memory(videos, config.fit_clips)
    codec.components.fit(_AsVideos(clips, config.augment))
    codec.components.to(device)
    tokens: list[Tensor] = []  # n k f h w each
    while clips:
        tokens.append(_tokens(codec.components, clips.pop(0)))  # one size after the other lets its pixels go
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _initialise(codec)
    codec.requires_grad_(True).train()
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        codec.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    for step in range(config.steps):
        generator = keyed_generator("autoencoder", step)
        batch = _draw_batch(tokens, config.batch_size, generator).to(device)  # b k f h w
        batch = Symmetry.drawn(config.augment, generator).of_tokens(codec.components, batch)
        with torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            latents, _, _ = _normalised(codec.to_latents(batch).float())
            predicted = codec.from_latents(_noised(latents, config.latent_noise, generator))
            loss = F.mse_loss(predicted.float(), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        on_step(step + 1, config.steps)
    codec.requires_grad_(False).eval()
    _settle(codec, tokens)


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


def _held_in_memory(videos: Iterable[Tensor], most: int) -> list[list[Tensor]]:
    """The clips, uint8 `m f h w 3` a tensor, those of one size together: at most `most`, MEMORY_BYTES in all.

    Evenly taken. Tensors of many clips: one a clip, between the floats each comes as, tears the heap to three times its
    size.
    """
    groups: dict[torch.Size, list[Tensor]] = {}
    sizes: dict[torch.Size, int] = {}
    count = len(videos) if isinstance(videos, Sized) else most
    kept = seen = seen_bytes = held_bytes = 0
    for video in videos:
        for clip in video_to_pixels(video):  # f h w 3
            seen_bytes += clip.numel()
            room = max(1, min(most, MEMORY_BYTES * (seen + 1) // seen_bytes))  # clips of the mean size so far
            if seen >= kept * max(1.0, count / room) and (held_bytes + clip.numel() <= MEMORY_BYTES or not kept):
                tensors, place = groups.setdefault(clip.shape, []), sizes.get(clip.shape, 0)
                together = _held_together(clip.shape)
                if place % together == 0:
                    tensors.append(clip.new_empty((together, *clip.shape)))
                tensors[-1][place % together] = clip
                sizes[clip.shape] = place + 1
                kept, held_bytes = kept + 1, held_bytes + clip.numel()
            seen += 1
    if not groups:
        raise UserError("codec: there is no clip to train the autoencoder on")
    for shape, tensors in groups.items():
        tensors[-1] = tensors[-1][: (sizes[shape] - 1) % _held_together(shape) + 1]
    return list(groups.values())


def _held_together(clip: torch.Size) -> int:
    """How many clips of this shape, uint8, one tensor holds."""
    return max(1, HELD_BYTES // clip.numel())


class _AsVideos:
    """The clips held, augmented, as a linear codec's `fit` reads them: float `1 3 f h w`, of known number."""

    def __init__(self, clips: list[list[Tensor]], augment: Augment) -> None:
        self._tensors = [tensor for group in clips for tensor in group]
        self._augment: Augment = augment

    def __len__(self) -> int:
        return sum(len(tensor) for tensor in self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        generator = keyed_generator("autoencoder components")
        for tensor in self._tensors:
            for clip in tensor:
                volume = pixels_to_video(clip[None])[0]  # 3 f h w
                yield Symmetry.drawn(self._augment, generator).of_volume(volume)[None]


def _draw_batch(tokens: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """`count` clips of one size, with replacement; sizes as often as they have clips."""
    shares = torch.tensor([float(len(group)) for group in tokens])
    group = tokens[int(torch.multinomial(shares, 1, generator=generator))]
    return group[torch.randint(len(group), (count,), generator=generator)]


@torch.no_grad()
def _tokens(components: BlockCodec, clips: list[Tensor]) -> Tensor:
    """uint8 `m f h w 3` each -> components `n k f/pf h/ph w/pw`, on the CPU."""
    device = components.mean.device
    return torch.cat([components.encode(pixels_to_video(some.to(device))).mean.cpu() for some in clips])


def _initialise(codec: Autoencoder) -> None:
    """Fresh weights, drawn from torch's global generator: a fit does not depend on what came before it."""
    for module in codec.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()


def _normalised(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents `b c f h w` with each channel's mean 0 and deviation 1 over the batch, that mean and that deviation."""
    dims = (0, 2, 3, 4)
    mean = latents.mean(dims, keepdim=True)
    std = (latents.var(dims, keepdim=True, correction=0) + SMALLEST_VARIANCE).sqrt()
    return (latents - mean) / std, mean, std


def _noised(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Each clip's latents mixed with noise, a share of it drawn from [0, most)."""
    share = torch.rand((len(latents), 1, 1, 1, 1), generator=generator) * most
    noise = torch.randn(latents.shape, generator=generator)
    return torch.lerp(latents, noise.to(latents.device), share.to(latents.device))


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS, steps))
    return warm * max(FINAL_RATE, 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _settle(codec: Autoencoder, tokens: list[Tensor]) -> None:
    """Fold the batches' normalisation into the waist, then measure the latents of the clips as they are."""
    config, device = codec.config, codec.latent_std.device

    def batches(augment: Augment) -> Iterable[Tensor]:
        for number in range(max(1, MEASURED_CLIPS // config.batch_size)):
            generator = keyed_generator("autoencoder statistics", number)
            batch = _draw_batch(tokens, config.batch_size, generator).to(device)
            yield codec.to_latents(Symmetry.drawn(augment, generator).of_tokens(codec.components, batch)).float()

    trained = [_normalised(latents)[1:] for latents in batches(config.augment)]
    mean = torch.stack([mean for mean, _ in trained]).mean(0).flatten()  # c
    std = torch.stack([std for _, std in trained]).mean(0).flatten()  # c
    codec.latent_out.weight.div_(std[:, None])
    codec.latent_out.bias.sub_(mean).div_(std)
    seen = [latents.transpose(0, 1).flatten(1).double() for latents in batches("none")]  # c m each
    count = sum(latents.shape[1] for latents in seen)
    first = torch.stack([latents.sum(1) for latents in seen]).sum(0) / count
    second = torch.stack([latents.square().sum(1) for latents in seen]).sum(0) / count
    codec.latent_mean.copy_(first)
    codec.latent_std.copy_((second - first.square()).clamp_min(SMALLEST_VARIANCE).sqrt())
