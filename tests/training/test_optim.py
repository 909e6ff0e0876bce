from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reelwright.training.config import TrainConfig
from reelwright.training.optim import (
    STATE,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from reelwright.types import UsageError


class Model(nn.Module):
    """A matrix, a norm, a bias, an embedding, a part that is used late, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)
        self.late = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, ids: Tensor, late: bool) -> Tensor:
        x = self.linear(self.norm(self.embedding(ids)))
        return self.frozen(self.late(x) if late else x)


CONFIG = TrainConfig(learning_rate=0.01, weight_decay=0.1)


def made(seed: int = 0) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model()
    return model, build_optimizer(model, CONFIG)


def take_steps(model: Model, optimizer: torch.optim.Optimizer, steps: range, late_from: int = 0) -> None:
    for step in steps:
        ids = torch.arange(5).roll(step)
        (model(ids, late=step >= late_from) ** 2 * (step + 1)).sum().backward()
        set_learning_rate(optimizer, 0.01 / (step + 1))
        optimizer.step()
        optimizer.zero_grad()


def straightforward_rate(schedule: str, peak: float, warmup: int, last: float, step: int, total: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    floor = peak * last
    return {
        "constant": peak,
        "linear": peak + (floor - peak) * done,
        "cosine": floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2,
    }[schedule]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("last", [0.0, 0.1])
def test_the_learning_rate_follows_its_formula(schedule: str, warmup: int, last: float) -> None:
    if schedule == "constant":
        last = 0.0
    config = TrainConfig(learning_rate=0.5, lr_schedule=schedule, warmup_steps=warmup, final_lr_fraction=last)  # pyright: ignore[reportArgumentType]
    for step in (0, 1, 9, 10, 11, 55, 99, 100):
        expected = straightforward_rate(schedule, 0.5, warmup, last, step, 100)
        assert learning_rate(config, step, 100) == pytest.approx(expected, abs=1e-12), step
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.5) and min(rates) > 0
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    end = 0.5 if schedule == "constant" else 0.5 * last
    assert learning_rate(config, 100, 100) == pytest.approx(end)
    assert learning_rate(config, 500, 100) == pytest.approx(end), "a run that goes past its end stays there"


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=100)
    assert [learning_rate(config, step, 10) for step in range(10)] == pytest.approx([(n + 1) / 100 for n in range(10)])


def test_only_matrices_decay() -> None:
    model, optimizer = made()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert names == {
        "embedding.weight": 0.1,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "linear.weight": 0.1,
        "linear.bias": 0.0,
        "late.weight": 0.1,
        "late.bias": 0.0,
        "frozen.weight": None,
        "frozen.bias": None,
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.01 * 0.1) if names[name] else before[name]
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


@pytest.mark.parametrize("late_from", [0, 100, 3])
def test_an_optimizer_restored_goes_on_bit_for_bit(late_from: int) -> None:
    """Also where a parameter has had no gradient when the state is saved, and gets its first one afterwards."""
    model, optimizer = made()
    take_steps(model, optimizer, range(3), late_from)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saved = {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    take_steps(model, optimizer, range(3, 8), late_from)

    resumed, fresh = made(seed=1)
    resumed.load_state_dict(weights)
    load_optimizer_tensors(resumed, fresh, saved)
    again = optimizer_tensors(resumed, fresh)
    assert again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in saved)
    take_steps(resumed, fresh, range(3, 8), late_from)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    last, last_resumed = optimizer_tensors(model, optimizer), optimizer_tensors(resumed, fresh)
    assert all(torch.equal(last[name], last_resumed[name]) for name in last)


def test_the_state_restored_is_a_copy() -> None:
    model, optimizer = made()
    take_steps(model, optimizer, range(2))
    saved = {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    held = {name: value.clone() for name, value in saved.items()}
    load_optimizer_tensors(model, optimizer, saved)
    take_steps(model, optimizer, range(2, 4))
    assert all(torch.equal(saved[name], held[name]) for name in saved)


def test_names_are_those_of_the_parameters_that_train() -> None:
    model, optimizer = made()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    names = {f"{key}.{name}" for key in STATE for name in trained}
    assert set(optimizer_tensors(model, optimizer)) == names, "before the first step"
    take_steps(model, optimizer, range(1))
    assert set(optimizer_tensors(model, optimizer)) == names


def test_every_missing_left_over_or_misshapen_tensor_is_named() -> None:
    model, optimizer = made()
    take_steps(model, optimizer, range(2))
    saved = optimizer_tensors(model, optimizer)

    def refused(tensors: dict[str, Tensor]) -> str:
        with pytest.raises(ValueError) as refusal:
            load_optimizer_tensors(*made(), tensors)
        return str(refusal.value)

    for name in saved:
        assert f"'{name}'" in refused({key: value for key, value in saved.items() if key != name})
        assert f"'{name}'" in refused({**saved, name: torch.zeros(7)})
    assert "exp_avg.frozen.weight" in refused({**saved, "exp_avg.frozen.weight": torch.zeros(3, 3)})


def test_the_learning_rate_reaches_every_group() -> None:
    model, optimizer = made()
    set_learning_rate(optimizer, 0.125)
    rates: list[Any] = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.125, 0.125]


class Wide(nn.Module):
    """Matrices large enough for moments in 8 bits (4096 values and more), and a small one that keeps 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64)
        self.late = nn.Linear(64, 64)

    def forward(self, x: Tensor, late: bool) -> Tensor:
        x = self.second(self.first(x))
        return self.late(x) if late else x


def test_eight_bit_moments_are_restored_bit_for_bit() -> None:
    pytest.importorskip("bitsandbytes")
    config = TrainConfig(learning_rate=0.01, optimizer="adamw8bit")

    def go(model: Wide, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(4, 64, generator=torch.Generator().manual_seed(step))
            model(x, late=step >= 4).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = Wide()
    optimizer = build_optimizer(model, config)
    go(model, optimizer, range(3))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saved = {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    assert saved["state1.first.weight"].dtype == torch.uint8 and saved["state1.first.bias"].dtype == torch.float32
    assert int(saved["step.first.weight"]) == 3 and int(saved["step.late.weight"]) == 0
    go(model, optimizer, range(3, 7))
    resumed = Wide()
    fresh = build_optimizer(resumed, config)
    resumed.load_state_dict(weights)
    load_optimizer_tensors(resumed, fresh, saved)
    go(resumed, fresh, range(3, 7))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in model.state_dict().items())


def test_optimizers_that_cannot_be_had_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match=r"train.optimizer = adamw8bit: needs bitsandbytes.*'reelwright\[bnb\]'"):
        build_optimizer(Wide(), TrainConfig(optimizer="adamw8bit"))


def test_paging_wants_a_gpu() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(UsageError, match="without a GPU use adamw"):
        build_optimizer(Wide(), TrainConfig(optimizer="paged_adamw8bit"))
