import itertools

import pytest
import torch

from reelwright.randomness import derive_seed, keyed_generator, keyed_normal

KEY = (0, 3, 17, "noise")


def test_the_scheme_is_fixed() -> None:
    """A change here changes every run, every cache of a fitted codec and every generated video."""
    assert derive_seed(*KEY) == 186922705389296306
    expected = torch.tensor([-1.0355074405670166, -0.9264169335365295, 1.1750539541244507])
    torch.testing.assert_close(keyed_normal((3,), *KEY), expected)


def test_equal_keys_draw_equally_whatever_else_was_drawn() -> None:
    first = keyed_normal((4, 5), *KEY)
    torch.manual_seed(1)
    torch.randn(100)
    state = torch.get_rng_state()
    assert torch.equal(keyed_normal((4, 5), *KEY), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert first.dtype == torch.float32 and first.device.type == "cpu"


@pytest.mark.parametrize("other", [(1, 3, 17, "noise"), (0, 4, 17, "noise"), (0, 3, 18, "noise"), (0, 3, 17, "time")])
def test_any_part_of_the_key_changes_the_draw(other: tuple[int | str, ...]) -> None:
    assert derive_seed(*other) != derive_seed(*KEY)
    assert not torch.equal(keyed_normal((8,), *other), keyed_normal((8,), *KEY))


def test_keys_that_look_alike_differ() -> None:
    alike: list[tuple[int | str, ...]] = [
        (1, 23), (12, 3), (123,), ("1", 23), (1, "23"), ("1", "23"), ("12", "3"), (-1, 23), (1, 23, ""), (True, 23),
        (1, 2, 3), (23, 1), (),
    ]  # fmt: skip
    seeds = [derive_seed(*key) for key in alike]
    assert len(set(seeds)) == len(alike)


def test_seeds_are_spread_and_fit_torch() -> None:
    seeds = [derive_seed(seed, epoch, index) for seed, epoch, index in itertools.product(range(10), repeat=3)]
    assert len(set(seeds)) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert 0.4 < sum(seed >> 62 for seed in seeds) / 1000 < 0.6
    draws = torch.stack([torch.rand((), generator=keyed_generator(0, index)) for index in range(1000)])
    assert abs(draws.mean() - 0.5) < 0.04 and abs(draws.var() - 1 / 12) < 0.01
