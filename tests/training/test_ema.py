from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reelwright.training.ema import EMA


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.LayerNorm(4))


def walk(module: nn.Module, step: int) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(torch.full_like(parameter, 0.1 * step / (number + 1)))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_follows_its_formula_in_float64(decay: float) -> None:
    module = model()
    ema = EMA(module, decay)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = {name: p.detach().double() for name, p in trained.items()}
    for step in range(1, 60):
        walk(module, step)
        ema.update(step)
        rate = min(decay, (1 + step) / (10 + step))
        expected = {name: rate * expected[name] + (1 - rate) * p.detach().double() for name, p in trained.items()}
    assert ema.tensors().keys() == expected.keys()
    for name, value in ema.tensors().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=2e-6, atol=1e-6)
        if decay == 0:
            assert torch.equal(value, trained[name])


def test_the_average_is_no_view_of_the_weights() -> None:
    module = model()
    ema = EMA(module, 0.9)
    before = {name: value.clone() for name, value in ema.tensors().items()}
    walk(module, 5)
    assert all(torch.equal(value, before[name]) for name, value in ema.tensors().items())


def test_applied_gives_back_the_very_same_weights() -> None:
    module = model()
    ema = EMA(module, 0.9)
    walk(module, 3)
    ema.update(1)
    optimizer = torch.optim.AdamW(module.parameters())
    weights = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in module.named_parameters()}
    with ema.applied():
        for name, average in ema.tensors().items():
            parameter = dict(module.named_parameters())[name]
            assert torch.equal(parameter, average) and not torch.equal(parameter, weights[name][2])
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        raise RuntimeError("inside")
    for name, parameter in module.named_parameters():
        same, pointer, bits = weights[name]
        assert parameter is same and parameter.data_ptr() == pointer and torch.equal(parameter, bits), name
    assert optimizer.param_groups[0]["params"][0] is next(module.parameters())


def test_saved_and_loaded_it_goes_on_bit_for_bit() -> None:
    module, other = model(), model()
    ema, again = EMA(module, 0.9), EMA(other, 0.9)
    for step in range(1, 4):
        walk(module, step)
        ema.update(step)
    other.load_state_dict(module.state_dict())
    again.load_tensors({name: value.clone() for name, value in ema.tensors().items()})
    for step in range(4, 7):
        for one, average in ((module, ema), (other, again)):
            walk(one, step)
            average.update(step)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in ema.tensors().items())


def test_what_does_not_fit_is_named() -> None:
    ema = EMA(model(), 0.9)
    tensors = ema.tensors()

    def refused(wrong: dict[str, Tensor]) -> str:
        with pytest.raises(ValueError) as refusal:
            ema.load_tensors(wrong)
        return str(refusal.value)

    for name in tensors:
        assert name in refused({key: value for key, value in tensors.items() if key != name})
        assert name in refused({**tensors, name: torch.zeros(1)}), "a shape that would broadcast"
    assert "1.weight" in refused({**tensors, "1.weight": torch.zeros(4, 4)})
