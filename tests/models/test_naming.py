"""Which words tell clips apart, and what naming them costs."""

import torch
from torch.testing import assert_close

from reelwright.models.naming import Naming, caption_words


def test_words_that_tell_clips_apart():
    table = caption_words([("A red ball", "the red one"), ("a blue ball",), ("a red cube",), ("a",)])
    assert table is not None
    words = ["ball", "red"]  # `a` is in all of them; blue, cube, one and the are in one clip each
    assert table.shape == (4, len(words))
    assert_close(table, torch.tensor([[0.5, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert caption_words([("one",), ("two",)]) is None


def test_naming_costs_one_by_frequencies_alone_and_less_by_what_latents_say():
    words = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    naming = Naming(2, words)
    torch.nn.init.zeros_(naming.linear.weight)
    with torch.no_grad():
        naming.linear.bias.copy_(words.mean(0).logit())
    latents = words[:, :, None, None, None].expand(-1, -1, 1, 2, 2) * 8 - 4
    assert_close(naming(latents, words), torch.tensor(1.0))
    torch.nn.init.eye_(naming.linear.weight)
    torch.nn.init.zeros_(naming.linear.bias)
    assert naming(latents, words) < 0.05
    assert_close(naming(latents[:, :, 0, 0, :1], words), naming(latents, words))
