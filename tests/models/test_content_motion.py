"""Content and motion apart: what each may depend on, where a thing is drawn, and that training lowers the error."""

import math

import pytest
import torch
from torch.testing import assert_close

from reelwright.models.content_motion import Components, ContentMotionConfig
from reelwright.models.poses import ANGLE, PLACE, POSE, SIZE
from reelwright.types import Codec, Compression, UserError
from squares import assert_state_dict_holds_it_whole, moving_squares, squared_error

torch.set_num_threads(1)

TINY = ContentMotionConfig(
    block=(4, 16, 16), content_channels=6, motion_channels=12, content=8, patch=4, patch_channels=24, view=12,
    width=24, heads=2, steps=480, learning_rate=1e-2, batch_size=8, align=0.0, additive=0.0, augment="none",
)  # fmt: skip
COLOURS = {"red": (0.9, -0.9, -0.9), "green": (-0.9, 0.6, -0.9), "blue": (-0.9, -0.9, 0.9)}


def squares(count: int, size: tuple[int, int, int] = (4, 16, 16)) -> list[torch.Tensor]:
    return moving_squares(count, size, tuple(COLOURS.values()))


CAPTIONS = [(f"a {tuple(COLOURS)[number % 3]} square",) for number in range(24)]


def trained(**changes):
    codec = TINY.model_copy(update=changes).build()
    codec.fit(squares(24), captions=CAPTIONS)
    return codec


@pytest.fixture(scope="module")
def codec():
    return trained()


def test_latents_have_their_size_and_unit_rms(codec):
    assert isinstance(codec, Codec) and codec.compression == Compression(4, 16, 16)
    latents = codec.encode(torch.cat(squares(24)))
    assert latents.logvar is None
    assert latents.mean.shape == (24, 6 + 12, 1, 1, 1) == (24, TINY.channels, 1, 1, 1)
    for part in (latents.mean[:, :6], latents.mean[:, 6:]):
        assert part.mean((0, 2, 3, 4)).abs().max() < 0.4
        assert 0.8 < part.square().mean() < 1.2
        assert part.square().mean((0, 2, 3, 4))[0] > 2 * part.square().mean((0, 2, 3, 4))[-1], "largest first"
    decoded = codec.decode(3 * latents.mean)
    assert decoded.shape == (24, 3, 4, 16, 16) and decoded.abs().max() <= 1


def test_training_lowers_the_error(codec):
    videos = squares(24)
    mean = torch.cat(videos).mean(0, keepdim=True)
    assert squared_error(codec, videos) < 0.5 * squared_error(trained(steps=4), videos)
    assert squared_error(codec, videos) < 0.5 * float((torch.cat(videos) - mean).square().mean())
    assert squared_error(trained(optimizer="adamw"), videos) < 0.5 * squared_error(trained(steps=4), videos)


def test_content_is_the_same_wherever_the_thing_goes_and_motion_whatever_it_is(codec):
    def clip(colour, top: int, left: int, right: int, down: int) -> torch.Tensor:
        video = torch.full((1, 3, 4, 16, 16), -0.8)
        for f in range(4):
            video[0, :, f, top + down * f : top + down * f + 5, left + right * f : left + right * f + 5] = torch.tensor(
                colour
            )[:, None, None]
        return video

    red, blue = COLOURS["red"], COLOURS["blue"]
    paths = [(2, 1, 2, 0), (8, 9, -2, 0), (1, 6, 0, 2)]
    clips = [clip(colour, *path) for colour in (red, blue) for path in paths]
    latents = codec.encode(torch.cat(clips)).mean.flatten(1).unflatten(0, (2, 3))  # colour path channels
    content, motion = latents.split([6, 12], dim=-1)
    assert_close(content, content[:, :1].expand_as(content), atol=1e-3, rtol=0)
    assert (content[0] - content[1]).abs().max() > 0.5
    assert_close(motion[0], motion[1], atol=1e-3, rtol=0)
    assert min((motion[0, i] - motion[0, i - 1]).abs().max() for i in range(3)) > 0.5


def test_content_knows_no_order_of_frames(codec):
    tokens = codec._blocks(codec.examples(torch.cat(squares(3))).read, TINY.view_extents)  # m r n k
    assert tokens.shape == (3, 4, 9, 24)
    assert_close(codec.look(tokens[:, [2, 0, 3, 1]]), codec.look(tokens), atol=1e-5, rtol=0)


def test_a_moved_pose_moves_the_picture():
    """Without its place in the picture a patch is drawn by where it lies as seen from the thing alone."""
    codec = TINY.build()
    codec.decoder_position.weight.zero_()
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(2, TINY.content, generator=generator)
    poses = torch.randn(2, 3, POSE, generator=generator)
    moved = poses.clone()
    moved[..., 1] += 0.5  # half heights: one of four patches
    grid = codec.draw(content, poses).unflatten(2, (4, 4))  # m f down right k
    shifted = codec.draw(content, moved).unflatten(2, (4, 4))
    assert_close(shifted[:, :, :, 1:], grid[:, :, :, :-1], atol=1e-5, rtol=0)
    assert not torch.allclose(shifted, grid, atol=1e-3)


@pytest.mark.parametrize("block", [(4, 16, 16), (4, 16, 24)])
def test_angle_and_size_turn_and_scale_what_is_seen(block):
    codec = TINY.model_copy(update={"block": block}).build()
    codec.decoder_position.weight.zero_()
    codec.pose_in.weight.zero_()
    content, pose = torch.ones(1, TINY.content), torch.zeros(1, 3, POSE)
    pose[..., SIZE] = -0.5
    pose[0, 1, ANGLE] = math.pi / 2
    pose[0, 2, SIZE] += math.log(3)
    side = block[2] // 4
    upright, turned, large = codec.draw(content, pose)[0].unflatten(1, (4, side)).unbind()  # down right k each
    middle = slice(side // 2 - 2, side // 2 + 2)  # the square in the middle
    assert_close(turned[:, middle], upright[:, middle].rot90(-1, (0, 1)), atol=1e-5, rtol=0)
    assert not torch.allclose(turned, upright, atol=1e-3)
    inner = slice(side // 2 - 1, side // 2 + 1)  # patches whose centres are at three times these are at the edges
    assert_close(large[::3, middle][:, ::3], upright[1:3, inner], atol=1e-5, rtol=0)
    assert not torch.allclose(large, upright, atol=1e-3)


def bar(angles: torch.Tensor) -> torch.Tensor:
    """`1 3 f 16 16`: a bar in the middle, turned so far."""
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    frames = []
    for angle in angles.tolist():
        right, down = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
        frames.append(1.6 * (0.5 - torch.maximum(right.abs() - 6, down.abs() - 2)).clamp(0, 1) - 0.8)
    return torch.stack(frames).expand(1, 3, -1, -1, -1)


def test_things_are_read_upright_and_drawn_as_they_are():
    angles = 0.6 * torch.arange(4)
    video = bar(angles)
    settings = {"turned": 0.0, "patch_channels": 48}
    codec = TINY.model_copy(update=settings).build()
    codec.components.fit([video, *squares(24)])
    generator = torch.Generator().manual_seed(0)
    clips = codec.examples(video, generator)
    assert clips.poses is not None and clips.wanted is not None
    assert_close(clips.poses[0, ANGLE, :, 0, 0], angles, atol=0.08, rtol=0)
    assert clips.poses[0, PLACE].abs().max() < 0.05
    assert_close(codec.components.decode(clips.wanted), video, atol=0.1, rtol=0)
    read = codec.components.decode(clips.read)
    assert read.shape == (1, 3, 4, 12, 12)
    assert float((read - read[:, :, :1]).abs().mean()) < 0.3 * float((video - video[:, :, :1]).abs().mean())
    further = TINY.model_copy(update=settings | {"turned": 1.0}).build()
    further.components.load_state_dict(codec.components.state_dict())
    more = further.examples(video, generator)
    assert more.poses is not None and more.wanted is not None
    assert_close(more.read, clips.read)
    assert not torch.allclose(more.wanted, clips.wanted, atol=0.3)
    apart = (more.poses - clips.poses).abs()
    assert (apart[:, ANGLE] > 0.01).all() and not apart[:, :ANGLE].any(), "every frame is turned further"
    drawn = further.components.decode(more.wanted)
    assert_close(drawn, bar(more.poses[0, ANGLE, :, 0, 0]), atol=0.75, rtol=0)
    assert (drawn - bar(more.poses[0, ANGLE, :, 0, 0])).abs().mean() < 0.3 * (drawn - video).abs().mean()
    plain = codec.examples(video)
    assert plain.wanted is None and plain.poses is not None
    assert_close(plain.poses, clips.poses)


def test_frames_that_show_nothing_take_their_pose_and_view_from_the_nearest_that_does():
    codec = TINY.model_copy(update={"patch_channels": 48}).build()
    codec.components.fit(squares(24))
    video = squares(1)[0].clone()
    whole = codec.examples(video)
    video[:, :, :2] = -0.8
    clips = codec.examples(video)
    assert clips.poses is not None and whole.poses is not None
    assert_close(clips.poses[:, :, 2:], whole.poses[:, :, 2:])
    assert_close(clips.poses[:, :, :2], whole.poses[:, :, 2:3].expand(-1, -1, 2, -1, -1))
    assert_close(clips.read[:, :, :2], clips.read[:, :, 2:3].expand(-1, -1, 2, -1, -1))
    nothing = codec.examples(torch.full_like(video, -0.8))
    assert nothing.poses is not None and nothing.poses.isfinite().all() and nothing.read.isfinite().all()


@pytest.mark.parametrize("size", [-60.0, 60.0])
def test_poses_beyond_all_bounds_are_drawn_as_numbers(codec, size):
    pose = torch.full((1, 4, POSE), 50.0)
    pose[..., SIZE] = size
    assert codec.draw(torch.zeros(1, TINY.content), pose).isfinite().all()


def test_components_are_the_principal_ones_and_half_whitened():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 3, generator=generator) * torch.tensor([9.0, 4.0, 1.0])
    x = 3 + mixed @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0][:3]
    components = Components(5, 3)
    components.fit(x, torch.ones(5))
    kept = components.of(x)
    assert_close(components.back(kept), x, atol=1e-3, rtol=0)
    assert_close(kept.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    deviation = kept.std(0)
    assert_close(deviation / deviation[2], torch.tensor([3.0, 2.0, 1.0]), atol=0.25, rtol=0)
    few = Components(5, 2)
    few.fit(x, torch.ones(5))
    assert 0.5 < (few.back(few.of(x)) - x).square().sum(1).mean() < 1.5, "what is left out is the third's variance"


def test_every_block_has_its_own_latent(codec):
    """A video of two blocks along each axis is eight videos of one."""
    generator = torch.Generator().manual_seed(1)
    video = torch.rand((1, 3, 8, 32, 32), generator=generator) * 2 - 1
    latents = codec.encode(video).mean
    assert latents.shape == (1, TINY.channels, 2, 2, 2)
    for f in range(2):
        for h in range(2):
            for w in range(2):
                part = (..., slice(4 * f, 4 * f + 4), slice(16 * h, 16 * h + 16), slice(16 * w, 16 * w + 16))
                alone = codec.encode(video[part]).mean
                assert_close(latents[..., f, h, w], alone[..., 0, 0, 0], atol=1e-4, rtol=1e-4)
                assert_close(codec.decode(latents)[part], codec.decode(alone), atol=1e-4, rtol=1e-4)


def test_a_fit_repeats_whatever_came_before_it():
    def weights(**changes) -> torch.Tensor:
        return trained(steps=6, **changes).head[1].weight

    first = weights()
    torch.rand(7)
    assert torch.equal(weights(), first)
    for changes in (
        {"augment": "colours"},
        {"turned": 0.8},
        {"frames_per_step": 3},
        {"latent_noise": 0.0},
    ):
        assert not torch.allclose(weights(**changes), first, atol=1e-5), changes


def test_products_in_bfloat16_are_remembered_and_say_the_same():
    video = torch.cat(squares(24))
    codec = TINY.model_copy(update={"steps": 60}).build()
    codec.fit(squares(24), dtype=torch.bfloat16)
    loaded = TINY.build()
    loaded.load_state_dict(codec.state_dict())
    assert loaded.encodes_in_bf16 and torch.equal(loaded.encode(video).mean, codec.encode(video).mean)
    half = codec.encode(video).mean
    codec.trained_in_bf16.fill_(False)
    whole = codec.encode(video).mean
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    assert_close(half, whole, atol=0.1, rtol=0)
    assert not trained(steps=2).encodes_in_bf16


def test_clips_of_several_sizes_train_together():
    codec = TINY.model_copy(update={"steps": 3, "align": 1.0}).build()
    clips = [*squares(6), *squares(6, (8, 16, 32))]
    codec.fit(clips, captions=CAPTIONS[:12])
    assert codec.decode(codec.encode(clips[-1]).mean).shape == (1, 3, 8, 16, 32)


@pytest.mark.full
def test_aligned_content_names_the_captions():
    """Of the content's variance, what lies between clips of different colours."""

    def share_told(codec) -> float:
        content = codec.encode(torch.cat(squares(24))).mean[:, : TINY.content_channels, 0, 0, 0]  # n c
        total = (content - content.mean(0)).square().sum()
        parts = [content[number::3] for number in range(3)]
        return float(sum(8 * (part.mean(0) - content.mean(0)).square().sum() for part in parts) / total)

    assert share_told(trained(align=3.0)) > share_told(trained()) + 0.05
    with pytest.raises(UserError, match="no word of the captions tells the clips apart"):
        TINY.model_copy(update={"align": 1.0}).build().fit(squares(24), captions=[("the same",)] * 24)


@pytest.mark.full
def test_additive_content_takes_the_same_step_from_every_colour():
    """From square to bar, of red and of blue things; of green ones there are squares alone."""

    def clip(colour: str, side: int) -> torch.Tensor:
        video = torch.full((1, 3, 4, 16, 16), -0.8)
        for f in range(4):
            video[0, :, f, 3 : 3 + side // 2, 2 + f : 2 + f + side] = torch.tensor(COLOURS[colour])[:, None, None]
        return video

    kinds = {"square": 3, "bar": 9}
    seen = [(colour, kind) for colour in COLOURS for kind in kinds if (colour, kind) != ("green", "bar")]
    captions = [(f"a {colour} {kind}",) for colour, kind in seen] * 4
    videos = [clip(colour, kinds[kind]) for colour, kind in seen] * 4

    def apart(**changes: float) -> float:
        codec = TINY.model_copy(update={"steps": 300, **changes}).build()
        codec.fit(videos, captions=captions)
        of = {pair: codec.encode(clip(pair[0], kinds[pair[1]])).mean[0, :6, 0, 0, 0] for pair in seen}
        steps = torch.stack([of[colour, "bar"] - of[colour, "square"] for colour in ("red", "blue")])
        return float((steps[0] - steps[1]).square().sum() / steps.square().sum())

    assert apart(additive=3.0) < 0.5 * apart()


def test_captions_without_a_telling_word_are_no_hindrance_where_naming_was_not_asked_for():
    usual = ContentMotionConfig(
        **{name: value for name, value in TINY.model_dump().items() if name not in ("align", "additive")}
    )
    assert usual.align > 0 and usual.additive > 0
    codec = usual.model_copy(update={"steps": 2}).build()
    codec.fit(squares(24), captions=[("the same",)] * 24)
    assert codec.fitted


def test_a_codec_that_diverges_is_told_of():
    with pytest.raises(UserError, match=r"no numbers after \d+ steps .* smaller than 1e\+30"):
        TINY.model_copy(update={"learning_rate": 1e30, "optimizer": "adamw"}).build().fit(squares(24))


def test_a_size_that_is_no_whole_number_of_blocks(codec):
    with pytest.raises(ValueError, match="multiple|whole|divide"):
        codec.encode(torch.zeros(1, 3, 4, 16, 20))


def test_state_dict_holds_it_whole(codec):
    assert_state_dict_holds_it_whole(codec, TINY.build(), squares(2)[1])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"block": (4, 18, 16)}, "whole multiples of patch = 4"),
        ({"view": 10}, "view = 10: it must be a whole multiple of patch = 4"),
        ({"augment": "all"}, "augment = all: poses are of the clips as they are"),
        ({"frames_per_step": 5}, "a block has 4 frames"),
        ({"content_channels": 9}, "content_channels = 9: there are content = 8"),
        ({"motion_channels": 17}, r"poses of 4 frames \(block\) are 16 numbers"),
        ({"batch_size": 1}, "use 2 or more"),
        ({"width": 20, "heads": 3}, "head dimension"),
        ({"patch_channels": 49}, "patch_channels = 49: a patch of .* has only 48 numbers"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        ContentMotionConfig(**{**TINY.model_dump(), **settings})
