"""How the autoencoder is trained on clips: one loop over their principal components, mirrored and recoloured.

The components are computed once. Exchanging colours, mirroring, turning and reversing are linear, so that they are done
to components too: a product with a small matrix in place of decoding, changing and encoding pixels again.

What captions say of clips may be a small part of how they look, and a denoiser learns what is large first. With `align`
the words of a clip's captions have to be read off its noisy latents by one linear layer (as Zha et al. 2024, "Language-
Guided Image Tokenization for Generation", arXiv 2412.05796, tie latents to text, but captions are needed here only to
train), which makes that part larger.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelwright.models.codec import BlockCodec, pixels_to_video, video_to_pixels
from reelwright.models.muon import Muon
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
WORD = re.compile(r"\w+")
WORD_SHARES = (0.005, 0.6)  # of the clips: rarer words are too rare to learn, commoner ones say little
HELD_BYTES = 12 << 20  # of clips in one tensor, or a single clip; their components are computed together


def train_autoencoder(
    codec: Autoencoder,
    videos: Iterable[Tensor],
    on_step: Callable[[int, int], None],
    dtype: torch.dtype,
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Everything of `codec` that is fitted or trained: components, weights, the latents' mean and deviation."""
    config, device = codec.config, codec.latent_std.device
    clips, numbers = _held_in_memory(videos, config.fit_clips)
    codec.components.fit(_AsVideos(clips, config.augment))
    codec.components.to(device)
    if codec.key_components is not None:
        codec.key_components.fit(_AsVideos(clips, config.augment))
        codec.key_components.to(device)
    groups: list[_Group] = []
    words = caption_words(captions) if config.align else None
    if config.align and words is None:
        raise UserError(
            f"codec.align = {config.align:g}: no word of the captions tells the clips apart (it takes one that two "
            "clips have and most have not); use codec.align=0"
        )
    while clips:  # one size after the other lets its pixels go
        groups.append(_group(codec, clips.pop(0), words[numbers.pop(0)] if words is not None else None))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _initialise(codec.cpu())
        naming = None if words is None else Naming(config.channels, words).to(device)
    codec.to(device).requires_grad_(True).train()
    trained = [*codec.parameters(), *(naming.parameters() if naming is not None else ())]
    optimizers = _optimizers(codec, naming, dtype)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps)) for optimizer in optimizers
    ]
    for step in range(config.steps):
        generator = keyed_generator("autoencoder", step)
        batch = _draw_batch(groups, config.batch_size, generator, device)
        batch = batch.changed(codec, Symmetry.drawn(config.augment, generator))
        with torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            latents, _, _ = _normalised(codec.to_latents(batch.read).float())
            noisy = _noised(latents, config.latent_noise, generator)
            predicted = codec.from_latents(noisy)
            loss = F.mse_loss(predicted.float(), batch.drawn)
            if naming is not None and batch.words is not None:
                loss = loss + config.align * naming(noisy, batch.words)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, GRADIENT_NORM)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        on_step(step + 1, config.steps)
    codec.requires_grad_(False).eval()
    _settle(codec, groups)


class Naming(nn.Module):
    """Which words the captions of a clip have, told by its latents. It is not kept: only training needs it."""

    def __init__(self, channels: int, words: Tensor) -> None:
        """`words` of every clip, `n words`, from 0 (in no caption of the clip) to 1 (in all)."""
        super().__init__()
        self.linear = nn.Linear(channels, words.shape[1])
        usual = words.mean(0)
        self.chance = float(F.binary_cross_entropy(usual.expand_as(words), words)) * words.shape[1]

    def forward(self, latents: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy of all words, as a share of what their frequencies alone would have.

        `b channels f h w`, `b words` -> a number.
        """
        told = self.linear(latents.flatten(2).mean(2)).float()  # b words
        return F.binary_cross_entropy_with_logits(told, words) * words.shape[1] / max(self.chance, 1e-6)


def caption_words(captions: Sequence[Sequence[str]]) -> Tensor | None:
    """Of every clip the share of its captions that have each word, `n words`; None where no word tells clips apart.

    Words in very few clips, or in most, are left out.
    """
    sets = [[set(WORD.findall(caption.lower())) for caption in some] for some in captions]
    shares = Counter(word for some in sets for word in set().union(*some))
    rarest, commonest = (share * len(sets) for share in WORD_SHARES)
    words = sorted(word for word, count in shares.items() if max(2, rarest) <= count <= commonest)
    if not words:
        return None
    place = {word: number for number, word in enumerate(words)}
    table = torch.zeros(len(sets), len(words))
    for row, some in zip(table, sets, strict=True):
        for caption in some:
            row[[place[word] for word in caption if word in place]] += 1 / len(some)
    return table


def _optimizers(codec: Autoencoder, naming: Naming | None, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the codec's matrices and AdamW for all else."""
    config = codec.config
    rest, matrices = list(codec.parameters()), []
    if config.optimizer == "muon":
        matrices = [parameter for parameter in rest if parameter.ndim == 2]
        rest = [parameter for parameter in rest if parameter.ndim != 2]
    rest += list(naming.parameters()) if naming is not None else []
    fused = codec.latent_std.device.type in ("cpu", "cuda")
    adamw = torch.optim.AdamW(rest, config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
    return [adamw, Muon(matrices, config.learning_rate, dtype=dtype)] if matrices else [adamw]


class _Group(NamedTuple):
    """Clips of one size, or a batch of them."""

    drawn: Tensor  # n k f h w: the components that are to come out
    read: Tensor  # n k' f' h w: what the encoder is told
    words: Tensor | None  # n words

    def changed(self, codec: Autoencoder, symmetry: Symmetry) -> Self:
        drawn = symmetry.of_tokens(codec.components, self.drawn)
        if codec.key_components is None:
            return self._replace(drawn=drawn, read=drawn)
        return self._replace(drawn=drawn, read=symmetry.of_tokens(codec.key_components, self.read))


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


def _held_in_memory(videos: Iterable[Tensor], most: int) -> tuple[list[list[Tensor]], list[list[int]]]:
    """The clips, uint8 `m f h w 3` a tensor, those of one size together: at most `most`, MEMORY_BYTES in all.

    Beside them which of the videos' clips each is, in order.

    Evenly taken. Tensors of many clips: one a clip, between the floats each comes as, tears the heap to three times its
    size.
    """
    groups: dict[torch.Size, list[Tensor]] = {}
    numbers: dict[torch.Size, list[int]] = {}
    count = len(videos) if isinstance(videos, Sized) else most
    kept = seen = seen_bytes = held_bytes = 0
    for video in videos:
        for clip in video_to_pixels(video):  # f h w 3
            seen_bytes += clip.numel()
            room = max(1, min(most, MEMORY_BYTES * (seen + 1) // seen_bytes))  # clips of the mean size so far
            if seen >= kept * max(1.0, count / room) and (held_bytes + clip.numel() <= MEMORY_BYTES or not kept):
                tensors, own = groups.setdefault(clip.shape, []), numbers.setdefault(clip.shape, [])
                together, place = _held_together(clip.shape), len(own)
                if place % together == 0:
                    tensors.append(clip.new_empty((together, *clip.shape)))
                tensors[-1][place % together] = clip
                own.append(seen)
                kept, held_bytes = kept + 1, held_bytes + clip.numel()
            seen += 1
    if not groups:
        raise UserError("codec: there is no clip to train the autoencoder on")
    for shape, tensors in groups.items():
        tensors[-1] = tensors[-1][: (len(numbers[shape]) - 1) % _held_together(shape) + 1]
    return list(groups.values()), list(numbers.values())


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


def _draw_batch(groups: list[_Group], count: int, generator: torch.Generator, device: torch.device) -> _Group:
    """`count` clips of one size, with replacement; sizes as often as they have clips."""
    shares = torch.tensor([float(len(group.drawn)) for group in groups])
    group = groups[int(torch.multinomial(shares, 1, generator=generator))]
    chosen = torch.randint(len(group.drawn), (count,), generator=generator)
    drawn, words = group.drawn[chosen].to(device), group.words
    read = drawn if group.read is group.drawn else group.read[chosen].to(device)
    return _Group(drawn, read, None if words is None else words[chosen].to(device))


@torch.no_grad()
def _group(codec: Autoencoder, clips: list[Tensor], words: Tensor | None) -> _Group:
    """uint8 `m f h w 3` each, of one size, as the loop wants them."""
    device = codec.latent_std.device
    drawn, read = [], []
    for some in clips:
        video = pixels_to_video(some.to(device))  # m 3 f h w
        drawn.append(codec.components.encode(video).mean.cpu())
        if codec.key_components is not None:
            read.append(codec.read(video).cpu())
    together = torch.cat(drawn)
    return _Group(together, torch.cat(read) if read else together, words)


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
def _settle(codec: Autoencoder, groups: list[_Group]) -> None:
    """Fold the batches' normalisation into the waist, then measure the latents of the clips as they are."""
    config, device = codec.config, codec.latent_std.device

    def batches(augment: Augment) -> Iterable[Tensor]:
        for number in range(max(1, MEASURED_CLIPS // config.batch_size)):
            generator = keyed_generator("autoencoder statistics", number)
            batch = _draw_batch(groups, config.batch_size, generator, device)
            yield codec.to_latents(batch.changed(codec, Symmetry.drawn(augment, generator)).read).float()

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
