"""The benchmark of denoisers at toy size: what is compared is alike, FLOPs are whole, its file says what it prints."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reelwright.types import Size

torch.set_num_threads(1)
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "denoisers.py"


@pytest.fixture(scope="module")
def bench() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def tiny(bench):
    return bench.Setting(32, 2, 2, Size(2, 2, 2), channels=4, text_length=3, text_width=6, batch=2)


NAMES = ("DiT full", "DiT factorised", "Latte", "CogVideoX", "Wan")


@pytest.mark.parametrize("name", NAMES)
def test_every_denoiser_is_built_for_the_setting_and_no_other(bench, tiny, name):
    contender = bench.DENOISERS[name](tiny)
    bench.check_same(contender, tiny)
    deeper = replace(contender, blocks=contender.blocks[:1])
    with pytest.raises(AssertionError):
        bench.check_same(deeper, tiny)


@pytest.mark.parametrize("name", ["DiT full", "DiT factorised"])
def test_flops_are_those_of_our_products(bench, tiny, name):
    d, n, l = tiny.width, tiny.tokens, tiny.text_length  # noqa: E741
    patch, depth = 4 * tiny.channels, tiny.depth
    groups = [(1, n), (1, n)] if name == "DiT full" else [(2, 4), (4, 2)]  # number of groups, tokens of one
    told = depth if name == "DiT full" else depth // 2  # blocks that attend to the text
    attention = sum(2 * count * m * m * d for count, m in groups) + told * 2 * n * l * d
    products = (depth * 12 + told * 2) * n * d * d + n * d * (2 * patch + 36)  # blocks; patches in and out, positions
    products += l * d * (tiny.text_width + 2 * told * d)  # text, and its keys and values for the blocks
    products += d * (256 + d + d) + (6 * depth + 2) * d * d  # time, pooled text, modulation
    # the places are the same for every sample and counted once a batch
    products -= n * d * 36 * (tiny.batch - 1) // tiny.batch
    _, generation = bench.count_flops(bench.DENOISERS[name](tiny), tiny)
    assert generation == pytest.approx(2 * 2 * (products + attention), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_training_costs_three_forwards(bench, tiny, name):
    training, generation = bench.count_flops(bench.DENOISERS[name](tiny), tiny)
    assert 2.5 < training / (generation / 2) < 3.0  # no gradient of the inputs


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains(bench, tiny, name):
    contender = bench.DENOISERS[name](tiny)
    before = [p.detach().clone() for p in contender.module.parameters()]
    step = bench.training_step(contender, tiny, "fp32")
    for _ in range(2):
        step()
    moved = [not torch.equal(old, new) for old, new in zip(before, contender.module.parameters(), strict=True)]
    assert sum(moved) > 0.5 * len(moved)


def test_it_runs_and_writes_what_it_printed(bench, tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    words = "--width 32 --heads 2 --depth 2 --grid 2 2 2 --text-length 3 --batch 1 --rounds 1 --repeats 1 --threads 1"
    monkeypatch.setattr(sys, "argv", ["denoisers.py", *words.split(), "--json", str(out)])
    bench.main()
    figures = json.loads(out.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert len(figures["rows"]) == 2 * 2 * len(NAMES)
    for row in figures["rows"]:
        wall, processor = figures["seconds_wall_and_processor"][f"{row['what']} {row['denoiser']} {row['precision']}"]
        assert row["samples_per_second"] == pytest.approx(1 / wall[0], rel=0.01) and processor[0] > 0
        assert str(row["samples_per_second"]) in printed
    for verdict in figures["verdicts"]:
        rates = {
            row["denoiser"]: row["samples_per_second"]
            for row in figures["rows"]
            if row["what"] == verdict["what"]
            and row["precision"] == verdict["precision" if row["denoiser"].startswith("DiT") else "theirs"]
        }
        best = max(rates[name] for name in ("Latte", "CogVideoX", "Wan"))
        assert verdict["speed"] == pytest.approx(rates[verdict["ours"]] / best, rel=0.02)
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["denoisers.py", "--depth", "3"])
        bench.main()
