"""Poses measured of drawings whose poses are known; things brought upright, and turned."""

import math

import pytest
import torch
from torch.testing import assert_close

from reelwright.models.poses import ANGLE, PLACE, POSE, SIZE, places, rotations, turned, views
from reelwright.models.poses import measured_poses as measured

torch.set_num_threads(1)
FRAMES = 12


def drawn(distance, angles, centres=None, sizes=None, height: int = 48, width: int = 64) -> torch.Tensor:
    """A thing `1 3 f h w` on grey, turned by `angles` clockwise as seen: inside where `distance(right, down) < 0`.

    Centres in pixels from the middle; sizes are factors.
    """
    centres = centres if centres is not None else torch.zeros(len(angles), 2)
    sizes = sizes if sizes is not None else torch.ones(len(angles))
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    frames = []
    for angle, centre, size in zip(angles, centres, sizes, strict=True):
        right, down = (x - centre[0]) / size, (y - centre[1]) / size
        cos, sin = math.cos(angle), math.sin(angle)
        inside = (0.5 - distance(cos * right + sin * down, cos * down - sin * right) * float(size)).clamp(0, 1)
        frames.append(torch.stack([-0.5 + 1.4 * inside, -0.5 + 0.1 * inside, -0.5 - 0.4 * inside]))
    return torch.stack(frames, dim=1)[None]


def measured_poses(video: torch.Tensor) -> torch.Tensor:
    return measured(video)[0]


def square(x, y):
    return torch.maximum(x.abs(), y.abs()) - 8


def bar(x, y):
    return torch.maximum(x.abs() - 11, y.abs() - 4)


def triangle(x, y):
    return torch.stack([y - 6, math.sin(math.radians(60)) * x - 0.5 * y - 6,
                        -math.sin(math.radians(60)) * x - 0.5 * y - 6]).amax(0)  # fmt: skip


def circle(x, y):
    return (x.square() + y.square()).sqrt() - 8


PATH = torch.stack([torch.linspace(-14.3, 12.9, FRAMES), torch.linspace(5.2, -6.7, FRAMES)], dim=1)


def half_heights(centres: torch.Tensor, height: int = 48) -> torch.Tensor:
    """Pixels (right, down) -> (down, right) in half heights."""
    return centres.flip(-1) / (height / 2)


@pytest.mark.parametrize("thing", [square, bar, triangle])
@pytest.mark.parametrize("step", [0.06, -0.25])
def test_turns_add_up_beyond_where_the_thing_looks_the_same(thing, step):
    angles = step * torch.arange(FRAMES)
    for centres in (None, 0.6 * PATH):
        poses = measured_poses(drawn(thing, angles, centres))
        assert poses.shape == (1, FRAMES, POSE)
        assert_close(poses[0, :, ANGLE], angles.float(), atol=0.06, rtol=0)


@pytest.mark.parametrize("thing", [square, bar, triangle, circle])
def test_place_and_size_of_what_moves_or_grows_without_turning(thing):
    still, growing = torch.zeros(FRAMES), torch.linspace(0.6, 1.5, FRAMES)
    moves, grows = measured_poses(drawn(thing, still, PATH))[0], measured_poses(drawn(thing, still, None, growing))[0]
    assert not moves[:, ANGLE].any() and not grows[:, ANGLE].any()
    assert_close(moves[:, PLACE], half_heights(PATH), atol=0.02, rtol=0)
    assert_close(grows[:, PLACE], torch.zeros(FRAMES, 2), atol=0.02, rtol=0)
    assert_close(moves[:, SIZE], moves[:1, SIZE].expand(FRAMES), atol=0.05, rtol=0)
    assert_close((grows - grows[-1])[:, SIZE], (growing / growing[-1]).log(), atol=0.05, rtol=0)


def test_sizes_are_rms_distances_from_the_middle():
    one = torch.zeros(1)
    for thing, expected in ((circle, 8 / math.sqrt(2)), (square, 16 / math.sqrt(6))):
        assert_close(
            measured_poses(drawn(thing, one))[0, 0, SIZE].exp() * 24, torch.tensor(expected), atol=0.25, rtol=0
        )


def test_a_circle_noise_nothing_and_another_thing_each_frame_do_not_turn():
    generator = torch.Generator().manual_seed(0)
    assert not measured_poses(drawn(circle, 0.3 * torch.arange(FRAMES)))[..., ANGLE].any()
    assert not measured_poses(torch.rand((4, 3, 6, 32, 32), generator=generator) * 2 - 1)[..., ANGLE].any()
    mixed = torch.stack([drawn(thing, [0.0])[0, :, 0] for thing in (bar, triangle, bar, triangle)], dim=1)[None]
    assert not measured_poses(mixed)[..., ANGLE].any()
    nothing = measured_poses(0.06 * torch.rand((2, 3, 5, 16, 16), generator=generator))
    assert nothing.isfinite().all() and not nothing[..., ANGLE].any() and not nothing[..., PLACE].any()


def test_frames_that_show_nothing_are_like_the_nearest_that_does():
    video = drawn(bar, 0.1 * torch.arange(FRAMES), PATH)
    poses, nearest = measured(video)
    assert nearest.tolist() == [list(range(FRAMES))]
    for gone, expected in (([0, 1], [2, 2]), ([5, 6, 7], [4, 4, 8]), ([FRAMES - 1], [FRAMES - 2])):
        some = video.clone()
        some[:, :, gone] = -0.5 + 0.03 * torch.rand(some[:, :, gone].shape)
        found, of = measured(some)
        assert of[0, gone].tolist() == expected
        assert_close(found[0, gone, :ANGLE], poses[0, expected, :ANGLE])
        assert_close(found[0, gone, ANGLE], found[0, expected, ANGLE], atol=1e-3, rtol=0)


def test_clips_do_not_depend_on_one_another_and_turns_add_up_from_the_first_frame():
    turns, moves = drawn(square, 0.1 * torch.arange(FRAMES)), drawn(bar, torch.zeros(FRAMES), PATH)
    together = measured_poses(torch.cat([turns, moves]))
    assert_close(together[:1], measured_poses(turns))
    assert_close(together[1:], measured_poses(moves))
    assert_close(measured_poses(turns[:, :, :7]), together[:1, :7])
    assert measured_poses(turns[:, :, :1]).shape == (1, 1, POSE)


@pytest.mark.parametrize("height, width", [(48, 48), (48, 64), (64, 48)])
def test_frames_turned_are_those_drawn_turned(height, width):
    centres = torch.tensor([[4.0, -3.0], [-5.0, 2.0], [0.0, 0.0]])
    angles = torch.tensor([0.4, -1.1, 0.0])
    upright = drawn(triangle, torch.zeros(3), centres, height=height, width=width)
    wanted = drawn(triangle, angles, centres, height=height, width=width)
    poses = torch.zeros(1, 3, POSE)
    poses[..., PLACE] = half_heights(centres, height)
    made = turned(upright, angles[None], poses)
    assert (made - wanted).abs().mean() < 0.15 * (upright - wanted).abs().mean()
    assert torch.equal(made[:, :, 2], upright[:, :, 2]), "a frame that is not turned stays as it is"
    back = turned(made, -angles[None], poses)
    assert (back - upright).abs().mean() < 0.25 * (upright - wanted).abs().mean()
    assert turned(upright, torch.zeros(1, 3), poses) is upright


@pytest.mark.parametrize("height, width", [(48, 64), (64, 48)])
def test_views_show_the_thing_upright_in_the_middle_and_of_one_size(height, width):
    angles, sizes = 0.2 * torch.arange(FRAMES), torch.linspace(0.6, 1.4, FRAMES)
    video = drawn(bar, angles, 0.4 * PATH, sizes, height=height, width=width)
    seen = views(video, measured_poses(video), 32, 2.5)
    assert seen.shape == (1, 3, FRAMES, 32, 32)
    one = drawn(bar, [0.0], height=32, width=32)
    expected = views(one, measured_poses(one), 32, 2.5)
    apart = (seen - expected).abs().mean((0, 1, 3, 4))
    assert apart.max() < 0.1, "of a difference of 1.4 between thing and ground"
    assert (seen[:, :, :1] - seen).abs().mean((0, 1, 3, 4)).max() < 0.12
    assert float(expected[0, 0, 0, 16, 16] - expected[0, 0, 0, 0, 0]) > 1.3, "the middle is thing, the corner ground"


def test_rotations_and_places():
    assert_close(places(2, 4)[..., 1], torch.tensor([[-1.5, -0.5, 0.5, 1.5]] * 2))
    assert_close(places(2, 4)[..., 0], torch.tensor([[-0.5] * 4, [0.5] * 4]))
    quarter = rotations(torch.tensor(math.pi / 2))
    assert_close(torch.tensor([1.0, 0.0]) @ quarter, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    both = rotations(torch.tensor([0.3, 0.5]))
    assert_close(both[0] @ both[1], rotations(torch.tensor(0.8)))
