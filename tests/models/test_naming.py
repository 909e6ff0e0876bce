"""Which words tell clips apart, and what naming them costs."""

import math

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
    torch.nn.init.zeros_(naming.name.weight)
    with torch.no_grad():
        naming.name.bias.copy_(words.mean(0).logit())
    latents = words[:, :, None, None, None].expand(-1, -1, 1, 2, 2) * 8 - 4
    assert_close(naming(latents, words)[0], torch.tensor(1.0))
    torch.nn.init.eye_(naming.name.weight)
    torch.nn.init.zeros_(naming.name.bias)
    assert naming(latents, words)[0] < 0.05
    assert_close(naming(latents[:, :, 0, 0, :1], words)[0], naming(latents, words)[0])


def test_latents_that_are_sums_over_words_cost_nothing_and_others_what_sums_leave():
    """Two words, all four combinations: a sum of two steps can be fitted, a step of the pair alone cannot."""
    words = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    sums = words @ torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, -1.0]]) - torch.tensor([1.0, 1.0, 0.0])
    pair = (words.prod(1, keepdim=True) - 0.25).expand(-1, 3) / math.sqrt(0.1875)  # unit variance
    for latents, least in ((sums, 0.0), (pair, 1 / 3)):
        torch.manual_seed(0)
        naming = Naming(3, words)
        optimizer = torch.optim.LBFGS(naming.add.parameters(), max_iter=50)

        def closure(naming=naming, optimizer=optimizer, latents=latents):
            optimizer.zero_grad()
            error = naming(latents[..., None], words)[1]
            error.backward()
            return error

        optimizer.step(closure)
        assert_close(naming(latents[..., None], words)[1], torch.tensor(least), atol=1e-4, rtol=0)
