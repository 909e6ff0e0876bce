"""LoRA on any network: what it freezes, adds, finds and merges."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from reelwright.training.lora import (
    LoraConfig,
    Update,
    add_lora,
    add_updates,
    find_targets,
    linear_layers,
    merge,
    quantize,
    updates_of,
)
from reelwright.types import UsageError, UserError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(24, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(self.qkv(self.norm(x)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(8, 5))


def moved(net: nn.Module) -> nn.Module:
    """Adapters that do something: their `up` starts at zero."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return net


def adapters(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


def test_at_first_it_changes_nothing_and_only_adapters_train():
    net, plain = network(), network()
    targets = add_lora(net, LoraConfig(rank=3), ("qkv", "out"))
    assert targets == ["0.qkv", "0.out", "1.qkv", "1.out"]
    assert torch.equal(net(X), plain(X))
    assert len(adapters(net)) == 8 and all(".lora_" in name for name in adapters(net))
    net(X).square().mean().backward()
    assert all((p.grad is None) != p.requires_grad for p in net.parameters())


def test_patterns_name_ends_of_names_or_whole_ones():
    net = network()
    assert find_targets(net, ["out"]) == ["0.out", "1.out"]
    assert find_targets(net, ["0.*"]) == ["0.qkv", "0.out"]
    assert find_targets(net, ["2", "1.qkv"]) == ["1.qkv", "2"]
    assert find_targets(net, ["*"]) == list(linear_layers(net)) == ["0.qkv", "0.out", "1.qkv", "1.out", "2"]
    with pytest.raises(UsageError, match=r"train.lora.targets: 'to_q' fits no linear layer .* 0.qkv \(1\)"):
        find_targets(net, ["out", "to_q"])
    with pytest.raises(UsageError, match="no preset"):
        add_lora(net, LoraConfig(), ())


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_what_leaves_the_network_is_the_same_function(rslora, dora):
    """Scale folded in, put beside a fresh network, then merged: three times the same output."""
    config = LoraConfig(rank=4, alpha=6.0, rslora=rslora, dora=dora)
    net = network()
    add_lora(net, config, ("qkv", "out"))
    expected = moved(net)(X)
    assert not torch.allclose(expected, network()(X), atol=1e-2)
    updates = updates_of(adapters(net), config)
    assert len(updates) == 4 and config.scale == pytest.approx(6 / (2 if rslora else 4))
    again = network()
    add_updates(again, updates, "added")
    assert torch.allclose(again(X), expected, atol=1e-5) and not adapters(again).keys() - dict(
        network().named_parameters()
    )
    merge(again)
    assert torch.allclose(again(X), expected, atol=1e-5)
    assert again.state_dict().keys() == network().state_dict().keys() and not hasattr(again, "peft_config")


def test_adapters_add_up_whatever_their_ranks():
    net = network()
    first = Update(torch.randn(2, 8), torch.randn(24, 2))
    second = Update(torch.randn(5, 8), torch.randn(24, 5))
    other = Update(torch.randn(3, 24), torch.randn(8, 3))
    add_updates(net, {"0.qkv": first}, "one", 0.5)
    add_updates(net, {"0.qkv": second, "1.out": other}, "two", -2.0)
    by_hand = network()
    with torch.no_grad():
        by_hand[0].qkv.weight += 0.5 * first.up @ first.down - 2 * second.up @ second.down
        by_hand[1].out.weight += -2 * other.up @ other.down
    assert torch.allclose(net(X), by_hand(X), atol=1e-4)


def test_adapters_of_every_kind_stand_beside_one_another():
    """Two LoRAs of other ranks and a DoRA, which scales the layer's own weights and is added as it is alone."""
    one = Update(torch.randn(2, 8), torch.randn(24, 2))
    two = Update(torch.randn(5, 8), torch.randn(24, 5))
    scaled = Update(torch.randn(3, 8), torch.randn(24, 3), torch.rand(24) + 0.5)
    layer = {"0.qkv": scaled}
    together, dora, plain, both = network(), network(), network(), network()
    add_updates(together, {"0.qkv": one}, "one")
    add_updates(together, layer, "dora")
    add_updates(together, {"0.qkv": two}, "two", 0.5)
    add_updates(dora, layer, "dora")
    with torch.no_grad():
        both[0].qkv.weight += one.up @ one.down + 0.5 * two.up @ two.down
        added = together[0].qkv(X) - plain[0].qkv(X)
        assert torch.allclose(added, dora[0].qkv(X) + both[0].qkv(X) - 2 * plain[0].qkv(X), atol=1e-4)
        expected = together(X)
    assert not adapters(together).keys() - dict(network().named_parameters())
    with pytest.raises(UserError, match=r"two LoRAs scale the rows of 0\.qkv \(DoRA\), and only one can"):
        add_updates(together, layer, "again")
    merge(together)
    assert torch.allclose(together(X), expected, atol=1e-4)


def test_an_adapter_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"made for another model: 0.qkv is 24 x 8, .* \[24, 2\] and \[2, 9\]"):
        add_updates(network(), {"0.qkv": Update(torch.ones(2, 9), torch.ones(24, 2))}, "bad")
    mixed = {
        "0.qkv": Update(torch.ones(2, 8), torch.ones(24, 2)),
        "1.qkv": Update(torch.ones(2, 8), torch.ones(24, 2), torch.ones(24)),
    }
    with pytest.raises(UserError, match="DoRA"):
        add_updates(network(), mixed, "bad")


def test_adapters_are_float32_beside_half_precision():
    net = network().bfloat16()
    add_lora(net, LoraConfig(rank=2, dropout=0.5), ("qkv",))
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in net.parameters() if not p.requires_grad} == {torch.bfloat16}
    out = net(X.bfloat16())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16


def test_the_start_depends_on_torchs_generator_alone():
    def start(init: str) -> dict[str, torch.Tensor]:
        net = network()
        torch.manual_seed(3)
        add_lora(net, LoraConfig(rank=64, init=init), ("qkv",))
        return adapters(net)

    first, again, gaussian = start("kaiming"), start("kaiming"), start("gaussian")
    assert all(torch.equal(first[name], again[name]) for name in first)
    down = gaussian["0.qkv.lora_A.default.weight"]
    assert down.std() == pytest.approx(1 / 64, rel=0.2)  # peft's, 1 / rank
    assert first["0.qkv.lora_A.default.weight"].abs().max() <= math.sqrt(1 / 8) + 1e-6


@pytest.mark.parametrize(
    "settings", [{"targets": []}, {"targets": ["out", ""]}, {"rank": 0}, {"alpha": 0}, {"dropout": 1}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        LoraConfig.parse(settings)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bit_weights_beside_adapters(kind):
    """Rounded, all but the layer that is excepted; adapters beside them train, in float32."""
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    net, plain = (
        nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)),
        nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)),
    )
    plain.load_state_dict(net.state_dict())
    x = torch.randn(3, 32)
    quantize(net, kind, beside=("1.",))
    assert type(net[0].weight) is not type(net[1].weight)
    error = (net(x) - plain(x)).abs().max() / plain(x).abs().max()
    assert 0 < error < 0.1
    before = net(x).detach()
    assert add_lora(net, LoraConfig(rank=2), ("0",)) == ["0"]
    assert torch.allclose(net(x), before)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        net(x).square().sum().backward()
        optimizer.step()
    assert not torch.allclose(net(x), before, atol=1e-3)
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}


def test_without_torchao_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UsageError, match=r"model.quantize = int8: needs torchao.*'reelwright\[quantize\]'"):
        quantize(network(), "int8")
