"""Clips in memory: their order, their share of it by size, and how many a tensor holds."""

import pytest
import torch

from reelwright.models import held_clips
from reelwright.models.codec import video_to_pixels
from squares import moving_squares

torch.set_num_threads(1)


def test_every_size_has_its_share_of_the_memory(monkeypatch):
    """Clips of two sizes in turn, and room for a third of them all."""
    small, large = moving_squares(30), moving_squares(30, (4, 32, 32))
    clips = [clip for pair in zip(small, large, strict=True) for clip in pair]
    monkeypatch.setattr(held_clips, "MEMORY_BYTES", sum(clip.numel() for clip in clips) // 3)
    held, places = held_clips.held_in_memory(clips, 1000)
    numbers = {group[0].shape[2]: sum(map(len, group)) for group in held}
    assert numbers.keys() == {16, 32} and min(numbers.values()) >= 6 and abs(numbers[16] - numbers[32]) <= 6
    assert sum(tensor.numel() for group in held for tensor in group) <= held_clips.MEMORY_BYTES
    for group, own in zip(held, places, strict=True):
        assert torch.equal(torch.cat(group), torch.cat([video_to_pixels(clips[place]) for place in own]))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_clips_are_held_in_their_order(count, monkeypatch):
    videos = moving_squares(count)
    monkeypatch.setattr(held_clips, "HELD_BYTES", 64 * videos[0].numel())
    (held,), (places,) = held_clips.held_in_memory(videos, 1000)
    assert places == list(range(count))
    assert all(len(tensor) == 64 for tensor in held[:-1])
    assert torch.equal(torch.cat(held), video_to_pixels(torch.cat(videos)))
    again = torch.cat(list(held_clips.AsVideos([held], "none")))
    assert (again - torch.cat(videos)).abs().max() < 0.005


def test_large_clips_are_held_one_by_one(monkeypatch):
    videos = moving_squares(3)
    monkeypatch.setattr(held_clips, "HELD_BYTES", videos[0].numel() - 1)
    (held,), _ = held_clips.held_in_memory(videos, 1000)
    assert [len(tensor) for tensor in held] == [1, 1, 1]
