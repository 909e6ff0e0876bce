from __future__ import annotations

import pytest
import torch

from reelwright.training import devices
from reelwright.training.devices import autocast, has_fast_bf16, resolve_device, resolve_precision
from reelwright.types import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("mkldnn", "avx512_bf16", "amx", "fast"),
    [(True, True, False, True), (True, False, True, True), (True, False, False, False), (False, True, True, False)],
)
def test_auto_on_a_cpu_is_bf16_where_it_is_fast_and_never_fp16(
    monkeypatch: pytest.MonkeyPatch, mkldnn: bool, avx512_bf16: bool, amx: bool, fast: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_fast_bf16(CPU) is fast
    assert resolve_precision("auto", CPU) == ("bf16" if fast else "fp32")


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_is_bf16_where_it_is_native_else_fp16(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_precision("auto", CUDA) == ("bf16" if native else "fp16")


def test_a_precision_asked_for_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fp32", "bf16"):
        assert resolve_precision(name, CPU) == name
    assert resolve_precision("fp16", CUDA) == "fp16"
    with pytest.raises(UsageError, match="precision = 'fp16': .* slower on a CPU; use"):
        resolve_precision("fp16", CPU)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU and resolve_device("cpu") == CPU
    with pytest.raises(UsageError, match="device = 'cuda': no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == CUDA and resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="device = 'cuda:2': torch sees 2"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cdua", "meta", "mps", "cuda:x"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"device = '{name}': not a device; use auto, cpu or cuda"):
        resolve_device(name)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_runs_products_in_its_precision_and_leaves_weights(
    precision: devices.Precision, dtype: torch.dtype
) -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, precision):
        assert layer(torch.zeros(1, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
