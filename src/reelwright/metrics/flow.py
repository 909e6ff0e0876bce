"""Dense optical flow, coarse to fine; warping by it, and which pixels both frames show."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COARSEST_SIDE = 12  # pixels: the pyramid goes on while the shorter side stays above it
ITERATIONS = 6  # a level
WINDOW_SIGMA = 2.0  # pixels, of the Gaussian window whose brightness one flow vector explains
PULL_SIGMA = 4.0  # pixels, of the neighbourhood whose mean flow a vector is pulled towards
STIFFNESS = 3e-4  # of that pull, in squared brightness gradients: where texture is weaker than this, neighbours decide
SURPRISE = 0.05  # brightness change from which on a pixel counts less: it was probably covered or uncovered
LARGEST_UPDATE = 1.0  # pixels an iteration; coarser levels take the larger steps
# Exchanges after which the fifth of nine values is their median (Smith 1996): a tenth of the time of sorting.
MEDIAN_OF_NINE = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6), (1, 4),
    (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luma(video: Tensor) -> Tensor:
    """uint8 or float RGB `f h w c` -> brightness `f h w`, uint8's range brought to [0, 1]."""
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video
    return pixels @ pixels.new_tensor(LUMA)


@torch.no_grad()
def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Flow `n 2 h w` (right, down; pixels) with second(x + flow(x)) = first(x), of brightness pairs `n h w` in [0, 1].

    Brightness constancy over a Gaussian window (Lucas & Kanade 1981) with a pull towards the neighbours' mean flow
    (Horn & Schunck 1981), the two joined as in Bruhn et al. 2005; a Lorentzian weight for what constancy does not hold
    for (Black & Anandan 1996), and a 3 x 3 median after each step (Sun et al. 2010). Without the pull and the weight,
    vectors beside a moving edge overshoot two- and threefold.
    """
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"frames of shape {tuple(first.shape)} and {tuple(second.shape)}: both must be one 'n h w'")
    pyramid = [(first[:, None], second[:, None])]
    while min(pyramid[-1][0].shape[2:]) // 2 >= COARSEST_SIDE:
        a, b = pyramid[-1]
        pyramid.append((_halved(a), _halved(b)))
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[2:])
    for a, b in reversed(pyramid):
        flow = _enlarged(flow, a.shape[2], a.shape[3])
        flow = _refined(a, b, flow)
    return flow


def _refined(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """One level: frames `n 1 h w`, flow `n 2 h w`. Each step solves a 2 x 2 system a pixel."""
    ix, iy = _gradients(first)
    for _ in range(ITERATIONS):
        change = first - warp(second, flow)  # n 1 h w
        weight = _inside(flow)[:, None] / (1 + (change / SURPRISE) ** 2)
        terms = [ix * ix, ix * iy, iy * iy, ix * change, iy * change]
        xx, xy, yy, gx, gy = _windowed(weight * torch.cat(terms, dim=1)).split(1, dim=1)
        pull = gaussian_blur(flow, PULL_SIGMA) - flow
        xx, yy = xx + STIFFNESS, yy + STIFFNESS
        gx, gy = gx + STIFFNESS * pull[:, :1], gy + STIFFNESS * pull[:, 1:]
        step = torch.cat([yy * gx - xy * gy, xx * gy - xy * gx], dim=1) / (xx * yy - xy * xy)
        flow = _median(flow + step.clamp(-LARGEST_UPDATE, LARGEST_UPDATE))
    return flow


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Frames `n c h w` read at x + flow(x), bilinear; beyond the rim the rim goes on."""
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=flow.dtype, device=flow.device),
        torch.arange(width, dtype=flow.dtype, device=flow.device),
        indexing="ij",
    )
    grid = torch.stack(
        [2 * (x + flow[:, 0]) / max(width - 1, 1) - 1, 2 * (y + flow[:, 1]) / max(height - 1, 1) - 1], dim=-1
    )  # n h w 2
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=True)


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of the first frame the second one shows too, `n h w` bool, from the flows both ways.

    There and back must end where it began: |w + w'|^2 <= 0.01 (|w|^2 + |w'|^2) + 0.5 (Sundaram et al. 2010, eq. 5), w'
    being the backward flow at the place w leads to; and that place must lie inside the frame.
    """
    back = warp(backward, forward)
    gap = (forward + back).square().sum(dim=1)
    reach = forward.square().sum(dim=1) + back.square().sum(dim=1)
    return (gap <= 0.01 * reach + 0.5) & _inside(forward)


def _inside(flow: Tensor) -> Tensor:
    """Whether x + flow(x) lies on a pixel of the frame, `n h w` bool."""
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device)[None, :] + flow[:, 0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of `n 1 h w` along x and y."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    ix = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    iy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return ix, iy


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable blur of `n c h w`, out to three sigma; the rim goes on beyond the frame."""
    height, width = images.shape[2:]
    return _blur_matrix(height, sigma, images) @ images @ _blur_matrix(width, sigma, images).T


def _blur_matrix(extent: int, sigma: float, like: Tensor) -> Tensor:
    """`extent extent`: each row the weights of one pixel. On a CPU products are three times as fast as convolutions."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(like.dtype) / sigma) ** 2)
    places = (torch.arange(extent, device=like.device)[:, None] + offsets).clamp(0, extent - 1)
    matrix = like.new_zeros(extent, extent)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(extent, -1))


def _windowed(images: Tensor) -> Tensor:
    return gaussian_blur(images, WINDOW_SIGMA)


def _halved(images: Tensor) -> Tensor:
    """`n 1 h w` -> `n 1 ceil(h/2) ceil(w/2)`, the same field of view."""
    height, width = images.shape[2:]
    size = (-(-height // 2), -(-width // 2))
    return F.interpolate(gaussian_blur(images, 0.8), size=size, mode="bilinear", align_corners=True)


def _enlarged(flow: Tensor, height: int, width: int) -> Tensor:
    """The flow on a finer grid, its vectors grown as the grid grows."""
    below_height, below_width = flow.shape[2:]
    if (below_height, below_width) == (height, width):
        return flow
    larger = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=True)
    growth = larger.new_tensor([(width - 1) / (below_width - 1), (height - 1) / (below_height - 1)])
    return larger * growth[None, :, None, None]


def _median(flow: Tensor) -> Tensor:
    """Median of each 3 x 3 neighbourhood, each component by itself."""
    height, width = flow.shape[2:]
    padded = F.pad(flow, (1, 1, 1, 1), mode="replicate")
    nine = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    for low, high in MEDIAN_OF_NINE:
        nine[low], nine[high] = torch.minimum(nine[low], nine[high]), torch.maximum(nine[low], nine[high])
    return nine[4]
