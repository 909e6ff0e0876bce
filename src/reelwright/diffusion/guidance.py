"""From a denoiser to denoise(): classifier-free guidance, then the objective's conversion.

predict = guided(denoiser, cond, uncond, scale=6.0)      predict(x, t) -> prediction
denoise = make_denoise(predict, objective)               denoise(x, t) -> (x0, eps)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reelwright.diffusion.objective import Objective
from reelwright.types import Denoiser, Text

Predict = Callable[[Tensor, Tensor], Tensor]
Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def guided(
    denoiser: Denoiser,
    cond: Text,
    uncond: Text,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    last_scale: float | None = None,
) -> Predict:
    """Classifier-free guidance as predict(x `b ...`, t `b`) -> prediction, one forward of twice the batch a call.

    uncond + scale (cond - uncond): Ho and Salimans 2022 (arXiv 2207.12598). `scale` 1 is no guidance: cond alone runs.
    With `last_scale` the frames of `b c f h w` go evenly from `scale` to it: Blattmann et al. 2023 (arXiv 2311.15127),
    appendix D, as a video made from its first frame needs guidance the more the further it is from it.
    `rescale` in [0, 1] pulls each sample's spread back to the conditional one's: Lin et al. 2023 (arXiv 2305.08891),
    section 3.4. Outside `interval` (lowest and highest t, both inside) cond alone runs: Kynkäänniemi et al. 2024
    (arXiv 2404.07724). Guided predictions are float32 at least. ValueError for values that fit none of this.
    """
    low, high = interval
    if last_scale is None:
        last_scale = scale
    if not (math.isfinite(scale) and math.isfinite(last_scale)):
        raise ValueError(f"scale = {scale} to {last_scale}: must be finite numbers; 1 means no guidance")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale = {rescale}: must lie in [0, 1]; 0 means none")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"interval = {interval}: must be (low, high) with 0 <= low <= high <= 1; (0, 1) is everywhere")
    if len(cond) != len(uncond):
        raise ValueError(f"cond has {len(cond)} samples and uncond {len(uncond)}: pass one negative text a sample")
    if scale == last_scale == 1:
        return lambda x, t: denoiser(x, t, cond)
    both = join_texts((cond, uncond))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        inside = (t >= low) & (t <= high)
        if not bool(inside.any()):
            return denoiser(x, t, cond)
        prediction = denoiser(torch.cat([x, x]), torch.cat([t, t]), both)
        positive, negative = prediction.to(torch.promote_types(prediction.dtype, torch.float32)).chunk(2)
        result = negative + _frame_scales(scale, last_scale, positive) * (positive - negative)
        if rescale > 0:
            result = result * (1 - rescale + rescale * _spread(positive) / _spread(result))
        return torch.where(inside.to(x.device).view(-1, *(1,) * (x.ndim - 1)), result, positive)

    return predict


def switched(above: Predict, below: Predict, time: float) -> Predict:
    """`above` for samples that are at `time` or later, `below` for the others; all of a call are on one side."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        late = t.float() >= time
        assert bool(late.all()) == bool(late.any()), f"t = {t.tolist()} lies on both sides of {time}"
        return (above if bool(late.all()) else below)(x, t)

    return predict


def make_denoise(predict: Predict, objective: Objective, told: Callable[[Tensor], Tensor] | None = None) -> Denoise:
    """denoise(x, t) -> (x0, eps), as samplers call it.

    The network is given t, or what it is `told` in its place, in the dtype and on the device of x; the conversion keeps
    the full precision of t.
    """

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        heard = t if told is None else told(t)
        return objective.to_x0_eps(predict(x, heard.to(x)), x, t)

    return denoise


def _frame_scales(first: float, last: float, like: Tensor) -> Tensor | float:
    if first == last:
        return first
    if like.ndim != 5:
        raise ValueError(f"scale from {first} to {last} over the frames of {tuple(like.shape)}: pass `b c f h w`")
    return torch.linspace(first, last, like.shape[2], dtype=like.dtype, device=like.device)[:, None, None]  # f 1 1


def join_texts(texts: Sequence[Text]) -> Text:
    """Texts as one batch, padded (and masked) to the longest of them; all of them have an image, or none has.

    None has weights: nobody generates from captions that are mixed.
    """
    length = max(text.mask.shape[1] for text in texts)
    values, masks = [], []
    for text in texts:
        missing = length - text.mask.shape[1]
        values.append(F.pad(text.values, (0, 0) * (text.values.ndim - 2) + (0, missing)))
        masks.append(F.pad(text.mask, (0, missing)))
    images = [text.image for text in texts if text.image is not None]
    return Text(torch.cat(values), torch.cat(masks), torch.cat(images) if images else None)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each sample, as `b 1 1 ...`; never 0, so that a constant sample divides by itself."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True, correction=0).clamp(min=1e-12)
