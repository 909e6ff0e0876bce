"""Blocks on the device two at a time: which are there when, equal results, and what is left afterwards."""

import copy

import pytest
import torch
from torch import nn

from reelwright.diffusion import schedule
from reelwright.models.offload import Streaming, find_blocks, on_device, streaming_bytes
from reelwright.pretrained.base import PretrainedDenoiser
from reelwright.types import Text, UsageError
from tiny_networks import NETWORKS, make_network, network_inputs

torch.set_num_threads(1)

CPU = torch.device("cpu")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """But for rounding, which may depend on where in memory a weight begins."""
    return float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def places(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_equal_output_with_two_blocks_there_at_most(name):
    """Every block computes from a slot, never from its weights on the host, and finds the next one on its way."""
    network = make_network(name).eval()
    x, t, text = network_inputs()
    expected = network(x, t, text)
    before, state = places(network), copy.deepcopy(network.state_dict())
    blocks = find_blocks(network)
    assert len(blocks) > 2
    order: list[str] = []
    with Streaming(network, CPU) as streaming:
        slots = [range(slot.data_ptr(), slot.data_ptr() + slot.nbytes) for slot in streaming.slots]

        def look(block: str) -> None:
            assert len(streaming.resident) <= 2 and block in streaming.resident
            assert all(place in slots[streaming.resident[block]] for place in places(blocks[block]))
            for other in set(blocks) - set(streaming.resident):
                assert not any(place in slot for place in places(blocks[other]) for slot in slots)
            order.append(block)

        handles = [b.register_forward_pre_hook(lambda *_, name=name: look(name)) for name, b in blocks.items()]
        for _ in range(3):
            assert same(network(x, t, text), expected)
        for handle in handles:
            handle.remove()
    assert order[: len(order) // 3] * 3 == order and set(order) == set(blocks)
    assert places(network) == before
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(network(x, t, text), expected)  # and no hook is left


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_nothing_is_computed_on_the_host(name, monkeypatch):
    """On the meta device a weight that stayed behind is an error of torch's."""
    monkeypatch.setattr(schedule, "_checked", lambda t: t)  # it looks at the time's numbers
    if name == "hunyuan":
        pytest.skip("looks at the numbers of its mask, and there are none")
    network = make_network(name).eval()
    x, t, text = network_inputs(batch=1)
    mask = torch.ones_like(text.mask)
    native = not isinstance(network, PretrainedDenoiser)  # those look at the mask and leave out one of all True
    inputs = x.to("meta"), t.to("meta"), Text(text.values.to("meta"), mask if native else mask.to("meta"))
    with on_device(network, torch.device("meta"), "block"):
        assert network(*inputs).device.type == "meta"
    assert all(p.device == CPU for p in network.parameters())


@torch.no_grad()
def test_the_next_block_is_there_before_it_is_called():
    """After the first walk nothing is fetched at its turn: the order that was seen is the one expected."""
    network = make_network("hunyuan").eval()  # three lists, called in another order than they are registered
    inputs = network_inputs()
    fetched: list[tuple[str, str | None]] = []
    with Streaming(network, CPU) as streaming:
        fetch = streaming._fetch

        def watched(name: str) -> None:
            if name not in streaming.resident:
                fetched.append((name, streaming._running))
            fetch(name)

        streaming._fetch = watched
        network(*inputs)
        fetched.clear()
        network(*inputs)
    assert len(fetched) >= len(find_blocks(network)) and all(running is not None for _, running in fetched)


@torch.no_grad()
def test_a_wrong_guess_costs_a_copy_and_nothing_else():
    """Blocks in an order of chance."""
    torch.manual_seed(0)
    network = nn.Module()
    network.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
    network.register_buffer("shift", torch.randn(4))
    x = torch.randn(3, 4)
    orders = [torch.randint(5, (7,)).tolist() for _ in range(6)]

    def walk(order: list[int]) -> torch.Tensor:
        out = x
        for index in order:
            out = network.blocks[index](out) + network.shift
        return out

    expected = [walk(order) for order in orders]
    with Streaming(network, CPU):
        assert all(same(walk(order), right) for order, right in zip(orders, expected, strict=True))


def test_what_is_needed_is_counted():
    network = make_network("dit")
    largest = max(sum(-(-p.nbytes // 256) * 256 for p in block.parameters()) for block in network.blocks)
    blocks = sum(p.nbytes for block in network.blocks for p in block.parameters())
    others = sum(t.nbytes for t in (*network.parameters(), *network.buffers())) - blocks
    assert streaming_bytes(network) == others + 2 * largest
    with Streaming(network, CPU) as streaming:
        assert sum(slot.nbytes for slot in streaming.slots) == 2 * largest


def test_an_error_leaves_the_weights_where_they_were():
    network = make_network("dit")
    before = places(network)
    with pytest.raises(ZeroDivisionError), on_device(network, CPU, "block"):
        raise ZeroDivisionError
    assert places(network) == before
    network.blocks[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), on_device(network, CPU, "block"):
        network(*network_inputs())
    assert places(network) == before


def test_parts_without_blocks_and_what_is_no_module():
    plain = nn.Linear(2, 2)
    for offload in ("none", "model", "block"):
        with on_device(plain, CPU, offload), on_device(object(), CPU, offload):
            plain(torch.zeros(1, 2))


@torch.no_grad()
def test_two_networks_share_the_two_places():
    """As the experts of a pipeline do, one after the other."""
    experts = nn.ModuleDict({name: make_network(name).eval() for name in ("wan", "ltx")})
    inputs = network_inputs()
    expected = [expert(*inputs) for expert in experts.values()]
    assert streaming_bytes(experts) < sum(p.nbytes for p in experts.parameters())
    with Streaming(experts, CPU) as streaming:
        for _ in range(2):
            assert all(same(e(*inputs), out) for e, out in zip(experts.values(), expected, strict=True))
            assert len(streaming.resident) == 2


def test_weights_with_inner_parts_are_refused():
    class Packed(torch.Tensor):
        pass

    network = make_network("dit")
    network.blocks[1].mlp.up.weight = nn.Parameter(torch.zeros(96, 24).as_subclass(Packed), requires_grad=False)
    with pytest.raises(UsageError, match="weights of Packed.*use --offload model"), on_device(network, CPU, "block"):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_on_cuda_memory_is_two_blocks():
    device = torch.device("cuda")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1024, 1024))
    network.blocks = nn.ModuleList(nn.Sequential(nn.Linear(1024, 4096), nn.Linear(4096, 1024)) for _ in range(12))
    x = torch.randn(64, 1024)

    def walk(value: torch.Tensor) -> torch.Tensor:
        for block in network.blocks:
            value = value + block(value)
        return value

    network.to(device)
    expected = walk(x.to(device))
    network.to(CPU)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    with on_device(network, device, "block"):
        for _ in range(5):
            assert same(walk(x.to(device)), expected)
    assert torch.cuda.max_memory_allocated() - base < streaming_bytes(network) + 2**24
    assert all(p.device == CPU for p in network.parameters())
