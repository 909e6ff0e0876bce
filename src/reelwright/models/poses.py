"""Where the thing that a clip shows is, how large, and how far it has turned: measured in every frame.

What stands out from the colour of the border is the thing; its middle and its spread are the place and the size. Turned
between two pictures about that middle, it is shifted along the angle of polar coordinates, and a shift is in the phases
of Fourier coefficients: Reddy & Chatterji 1996, "An FFT-Based Technique for Translation, Rotation, and Scale-Invariant
Image Registration", IEEE Transactions on Image Processing 5(8). No single picture tells how far a square has turned, as
it looks the same after a quarter; from one frame to the next turns are small, and add up.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

POSE = 4  # numbers, in this order:
PLACE = slice(0, 2)  # of the middle, down and right of the frame's, in half heights of it
SIZE = 2  # the logarithm of the RMS distance from the middle of what stands out, in half heights
ANGLE = 3  # radians clockwise as seen, against the first frame

STANDS_OUT = 0.25  # of the largest difference from the border's colour: what differs less is background
FAINTEST = 0.2  # of differences summed over channels from -1 to 1: a frame where all differ less shows nothing
ANGLES, RADII = 64, 8  # polar samples of a picture
WIDEST = 2.0  # of the radii, in RMS distances
HARMONICS = 12  # Fourier coefficients along the angle
LARGEST_STEP = math.radians(40)  # between frames: less than half of what brings a square back to itself
TRIED = 161  # angles up to it, either way
STILLNESS = 1e-3  # of the agreement: by so much a turn of LARGEST_STEP must agree better than none
LEAST_UNEVEN = 0.004  # power around the middle against the even part's: a circle has less, and shows no turn
LEAST_TURN = math.radians(3)  # of a whole clip, at its farthest: what turns less is taken not to turn
LEAST_AGREEMENT = 0.7  # correlation of two frames, the one turned: below it they show different things


def measured_poses(video: Tensor) -> tuple[Tensor, Tensor]:
    """Of clips of one thing each, `m 3 f h w` in float32: poses `m f POSE`, and of which frame each is, `m f`.

    That is the frame itself, or the nearest that shows something. Angles are 0 where no turn can be told.
    """
    m, _, f, height, width = video.shape
    seen = _standing_out(video)  # m f h w
    nearest = _nearest(seen.flatten(2).any(dim=2))  # m f
    seen = seen[torch.arange(m, device=video.device)[:, None], nearest].flatten(0, 1)  # m*f h w
    middle, radius = _middle_and_radius(seen)  # n 2, n
    around = torch.arange(ANGLES, device=video.device) / ANGLES * 2 * math.pi
    radii = torch.arange(1, RADII + 1, device=video.device) / RADII * WIDEST
    rays = radii[:, None, None] * torch.stack([around.sin(), around.cos()], dim=-1)  # radii angles 2: down, right
    sampled = middle[:, None, None] + radius[:, None, None, None] * rays  # m*f radii angles 2
    polar = F.grid_sample(seen[:, None], _grid(sampled, height, width), align_corners=False)[:, 0]  # m*f radii angles
    spectrum = torch.fft.rfft(polar, dim=-1)[..., : HARMONICS + 1].unflatten(0, (m, f))  # m f radii 1+harmonics
    angles = F.pad(_steps(spectrum, radii).cumsum(-1), (1, 0))  # m f
    angles = torch.where(angles.abs().amax(dim=1, keepdim=True) > LEAST_TURN, angles, 0)
    rest = torch.cat([middle, radius.log()[:, None]], dim=1).unflatten(0, (m, f))
    return torch.cat([rest, angles[..., None]], dim=-1), nearest


def rotations(angles: Tensor) -> Tensor:
    """`...` -> `... 2 2`: a place (down, right) in what is turned so far, times this, is the one in the upright."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, sin], dim=-1), torch.stack([-sin, cos], dim=-1)], dim=-2)


def places(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Centres of the pixels, or patches, of a picture cut into so many square ones: `h w 2`, in half heights."""
    axes = [_centres(count, height, device) for count in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def views(video: Tensor, poses: Tensor, side: int, reach: float) -> Tensor:
    """The things of `m 3 f h w` upright and in the middle, all equally large, `m 3 f side side`.

    From the middle to the edge are `reach` RMS distances. What lies outside the frame repeats the border.
    """
    m, _, f, height, width = video.shape
    poses = poses.flatten(0, 1)  # m*f POSE
    from_thing = places(side, side, video.device).flatten(0, 1) * reach * poses[:, SIZE, None, None].exp()  # m*f n 2
    sampled = from_thing @ rotations(poses[:, ANGLE]).mT + poses[:, None, PLACE]
    grid = _grid(sampled, height, width).unflatten(1, (side, side))
    frames = F.grid_sample(
        video.transpose(1, 2).flatten(0, 1), grid, padding_mode="border", align_corners=False
    )  # m*f 3 side side
    return frames.unflatten(0, (m, f)).transpose(1, 2)


def turned(video: Tensor, angles: Tensor, poses: Tensor) -> Tensor:
    """Clips `m 3 f h w`, the thing in each frame turned about its middle by its angle `m f`, clockwise as seen.

    What comes in at the corners repeats the border.
    """
    m, _, f, height, width = video.shape
    which = angles.flatten().nonzero()[:, 0]
    if not len(which):
        return video
    middle = poses.flatten(0, 1)[which, None, PLACE]  # n 1 2
    from_middle = places(height, width, video.device).flatten(0, 1) - middle  # n h*w 2
    sampled = from_middle @ rotations(angles.flatten()[which]) + middle
    grid = _grid(sampled, height, width).unflatten(1, (height, width))
    frames = video.transpose(1, 2).flatten(0, 1).clone()  # m*f 3 h w
    frames[which] = F.grid_sample(frames[which], grid, padding_mode="border", align_corners=False)
    return frames.unflatten(0, (m, f)).transpose(1, 2)


def _centres(count: int, height: int, device: torch.device | None) -> Tensor:
    """Of so many pixels side by side, in half heights of a picture `height` pixels high, from its middle."""
    return (torch.arange(count, device=device) + 0.5 - count / 2) / (height / 2)


def _grid(sampled: Tensor, height: int, width: int) -> Tensor:
    """Places `... 2` (down, right) in half heights -> as grid_sample has them: (right, down) from -1 to 1."""
    return torch.stack([sampled[..., 1] * (height / width), sampled[..., 0]], dim=-1)


def _nearest(shown: Tensor) -> Tensor:
    """Of each frame, which of those that are `shown` `m f` is nearest; itself where none is. The earlier of two."""
    frames = torch.arange(shown.shape[1], device=shown.device)
    apart = (frames[:, None] - frames).abs() + len(frames) * ~shown[:, None]  # m f f
    return torch.where(shown.any(dim=1, keepdim=True), apart.argmin(dim=2), frames)


def _standing_out(video: Tensor) -> Tensor:
    """How far each pixel is from the colour of its frame's border, of the most in that frame: `m f h w` in [0, 1].

    Zero in frames that show nothing.
    """
    sides = [video[..., 0, :], video[..., -1, :], video[..., 0], video[..., -1]]  # m 3 f h or w
    background = torch.cat(sides, dim=-1).median(dim=-1).values  # m 3 f
    seen = torch.zeros_like(video[:, 0])  # m f h w
    for channel, own in zip(video.unbind(1), background.unbind(1), strict=True):
        seen += (channel - own[..., None, None]).abs_()
    most = seen.amax((2, 3), keepdim=True)
    seen.div_(most.clamp_min(FAINTEST) * (1 - STANDS_OUT)).sub_(STANDS_OUT / (1 - STANDS_OUT)).clamp_(min=0)
    return seen.mul_(most >= FAINTEST)


def _middle_and_radius(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Of pictures `n h w`: the middle `n 2` (down, right), and the RMS distance from it `n`, at least a pixel."""
    _, height, width = seen.shape
    mass = seen.sum((1, 2)).clamp_min(torch.finfo(seen.dtype).tiny)  # n
    middles, variance = [], torch.zeros_like(mass)
    for along, extent in ((seen.sum(2), height), (seen.sum(1), width)):
        place = _centres(extent, height, seen.device)
        middle = (along @ place) / mass
        middles.append(middle)
        variance += (along * (place - middle[:, None]).square()).sum(1) / mass
    return torch.stack(middles, dim=1), variance.sqrt().clamp_min(2 / height)


def _steps(spectrum: Tensor, radii: Tensor) -> Tensor:
    """Fourier coefficients around the middle `m f radii 1+harmonics` -> turns between frames, radians `m f-1`."""
    before, after = spectrum[:, :-1], spectrum[:, 1:]
    even = (before[..., 0] * after[..., 0]).real @ radii  # m f-1
    crossed = ((before.conj() * after)[..., 1:] * radii[:, None]).sum(2)  # m f-1 harmonics
    power = ((spectrum.abs().square())[..., 1:] * radii[:, None]).sum((2, 3))  # m f
    tried = torch.linspace(-LARGEST_STEP, LARGEST_STEP, TRIED, device=radii.device)
    phases = torch.arange(1, HARMONICS + 1, device=radii.device)[:, None] * tried  # harmonics tried
    agreement = crossed.real @ phases.cos() - crossed.imag @ phases.sin()  # m f-1 tried
    most = agreement.amax(-1)  # m f-1
    best = (agreement - STILLNESS * most[..., None] * (tried / LARGEST_STEP).abs()).argmax(-1).clamp(1, TRIED - 2)
    left, top, right = (agreement.gather(-1, best[..., None] + offset)[..., 0] for offset in (-1, 0, 1))
    bend = (left - 2 * top + right).clamp_max(-torch.finfo(top.dtype).tiny)  # of the parabola through the three
    between = (0.5 * (left - right) / bend).clamp(-1, 1)
    told = (most > LEAST_UNEVEN * even) & (most > LEAST_AGREEMENT * (power[:, :-1] * power[:, 1:]).sqrt())
    return torch.where(told, tried[best] + between * (tried[1] - tried[0]), 0)
