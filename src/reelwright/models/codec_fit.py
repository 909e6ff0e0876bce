"""How a codec is trained on clips: one loop over their principal components, which are computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelwright.console import print_error
from reelwright.models.codec import pixels_to_video
from reelwright.models.held_clips import AsVideos, held_in_memory
from reelwright.models.muon import Muon
from reelwright.models.naming import Naming, caption_words
from reelwright.models.symmetry import Symmetry
from reelwright.models.trained_codec import Examples
from reelwright.randomness import keyed_generator
from reelwright.types import UserError

if TYPE_CHECKING:
    from reelwright.models.trained_codec import TrainedCodec, TrainedCodecConfig

WARMUP_STEPS = 100
FINAL_RATE = 0.02  # of the learning rate, where the cosine ends
GRADIENT_NORM = 1.0
HELD = torch.float16  # of the components of all clips, whose deviation is about one
MEASURED_CLIPS = 1024  # about so many at most, for the latents' final mean and scale


def train_codec(
    codec: TrainedCodec,
    videos: Iterable[Tensor],
    on_step: Callable[[int, int], None],
    dtype: torch.dtype,
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Everything of `codec` that is fitted or trained: components, weights, the latents' mean and deviation."""
    config, device = codec.config, codec.latent_std.device
    clips, numbers = held_in_memory(videos, config.fit_clips)
    words = _words(config, captions)
    codec.components.fit(AsVideos(clips, config.augment))
    codec.components.to(device)
    groups: list[_Group] = []
    every = -(-sum(map(len, numbers)) // MEASURED_CLIPS)
    while clips:  # one size after the other lets its pixels go
        groups.append(_group(codec, clips.pop(0), words[numbers.pop(0)] if words is not None else None, every))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _initialise(codec.cpu())
        naming = None if words is None else Naming(codec.named_channels, words).to(device)
    codec.to(device).requires_grad_(True).train()
    trained = [*codec.parameters(), *(naming.parameters() if naming is not None else ())]
    optimizers = _optimizers(codec, naming, dtype)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps)) for optimizer in optimizers
    ]
    for step in range(config.steps):
        generator = keyed_generator("autoencoder", step)
        clips, told = _draw_batch(codec, groups, generator)
        with torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            attempt = codec.attempt(clips, generator)
            loss = F.mse_loss(attempt.predicted.float(), attempt.wanted)
            if naming is not None and told is not None:
                named, added = naming(attempt.noisy, told)
                loss = loss + config.align * named + config.additive * added
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, GRADIENT_NORM)
        if not bool((loss.detach() + norm).isfinite()):
            raise UserError(
                f"codec: loss and gradient are no numbers after {step} steps of training; use a codec.learning_rate "
                f"smaller than {config.learning_rate:g}"
            )
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        on_step(step + 1, config.steps)
    codec.requires_grad_(False).eval()
    _settle(codec, groups, dtype)


def _words(config: TrainedCodecConfig, captions: Sequence[Sequence[str]]) -> Tensor | None:
    """The words of each clip's captions, where they are wanted and tell the clips apart."""
    wanted = [name for name in ("align", "additive") if getattr(config, name)]
    words = caption_words(captions) if wanted else None
    if words is None and wanted:
        rule = "no word of the captions tells the clips apart (it takes one that two clips have and most have not)"
        if asked := config.model_fields_set.intersection(wanted):  # not merely usual
            name = min(asked)
            raise UserError(f"codec.{name} = {getattr(config, name):g}: {rule}; use codec.{name}=0")
        print_error(f"codec.{wanted[0]}: {rule}; the codec is trained without it")
    return words


def _optimizers(codec: TrainedCodec, naming: Naming | None, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
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
    """Clips of one size."""

    clips: Examples  # as they are trained on, in half the bytes
    words: Tensor | None  # n words
    plain: Examples  # some of them as they are


def _draw_batch(
    codec: TrainedCodec, groups: list[_Group], generator: torch.Generator
) -> tuple[Examples, Tensor | None]:
    """Clips of one size, mirrored and recoloured as the codec's settings say, and their words.

    With replacement; sizes as often as they have clips.
    """
    config, device = codec.config, codec.latent_std.device
    shares = torch.tensor([float(len(group.clips.read)) for group in groups])
    group = groups[int(torch.multinomial(shares, 1, generator=generator))]
    chosen = torch.randint(len(group.clips.read), (config.batch_size,), generator=generator)
    clips = _each(lambda held: held[chosen].to(device, torch.float32), group.clips)
    words = None if group.words is None else group.words[chosen].to(device)
    symmetry = Symmetry.drawn(config.augment, generator)
    read = symmetry.of_tokens(codec.components, clips.read)
    wanted = None if clips.wanted is None else symmetry.of_tokens(codec.components, clips.wanted)
    return Examples(read, wanted, clips.poses), words


@torch.no_grad()
def _group(codec: TrainedCodec, clips: list[Tensor], words: Tensor | None, every: int) -> _Group:
    """uint8 `m f h w 3` each, of one size, as the loop wants them."""
    device = codec.latent_std.device
    trained, plain, seen = [], [], 0

    def held(clips: Examples) -> Examples:
        halved = _each(lambda x: x.to("cpu", HELD), clips)
        return halved._replace(poses=None if clips.poses is None else clips.poses.cpu())

    for some in clips:
        video = pixels_to_video(some.to(device))  # m 3 f h w
        trained.append(held(codec.examples(video, keyed_generator("varied clips", seen))))
        if len(sample := video[-seen % every :: every]):
            plain.append(held(codec.examples(sample)))
        seen += len(video)
    return _Group(_joined(trained), words, _joined(plain))


def _each(change: Callable[[Tensor], Tensor], of: Examples) -> Examples:
    """What `change` makes of every tensor there is."""
    return Examples(
        change(of.read),
        None if of.wanted is None else change(of.wanted),
        None if of.poses is None else change(of.poses),
    )


def _joined(parts: list[Examples]) -> Examples:
    read, wanted, poses = ([x for x in some if x is not None] for some in zip(*parts, strict=True))
    return Examples(torch.cat(read), torch.cat(wanted) if wanted else None, torch.cat(poses) if poses else None)


def _initialise(codec: TrainedCodec) -> None:
    """Fresh weights, drawn from torch's global generator: a fit does not depend on what came before it."""
    for module in codec.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS, steps))
    return warm * max(FINAL_RATE, 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _settle(codec: TrainedCodec, groups: list[_Group], dtype: torch.dtype) -> None:
    """The latents' mean and scale."""
    config, device = codec.config, codec.latent_std.device

    def trained() -> Iterator[Examples]:
        for number in range(max(1, MEASURED_CLIPS // config.batch_size)):
            yield _draw_batch(codec, groups, keyed_generator("autoencoder statistics", number))[0]

    def plain() -> Iterator[Examples]:
        for group in groups:
            for start in range(0, len(group.plain.read), config.batch_size):
                rows = slice(start, start + config.batch_size)
                yield _each(lambda held, rows=rows: held[rows].to(device, torch.float32), group.plain)

    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        codec.settle(trained(), plain())
