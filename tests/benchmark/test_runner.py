"""The benchmark on every track: its own prompts, reader, columns and checker's hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reelwright.benchmark import (
    HEADERS,
    Benchmark,
    checker_of,
    read_collection,
    run_benchmark,
    tabulate,
    write_benchmark_page,
)
from reelwright.benchmark.runner import WORST, _worst
from reelwright.generate import Compute
from reelwright.loading import load_model
from reelwright.prepare import prepare
from reelwright.recipe import Recipe, SamplingConfig
from reelwright.run import RunDirectory
from reelwright.shapes.checker import Reading
from reelwright.shapes.files import write_collection
from reelwright.shapes.frozen import checker_hash
from reelwright.shapes.scores import wrong_factors
from reelwright.shapes.splits import prompts
from reelwright.shapes.world import Factors
from reelwright.types import Size, UsageError
from reelwright.video.write import write_video

CPU = Compute(torch.device("cpu"))
SAMPLING = {"steps": 1, "guidance": 1.0}
SIZE = Size(16, 64, 64)

# track, coverage, a split of its own, the columns that only it has
TRACKS = [
    ("s2", None, "swaps", ["swapped", "bound right"]),
    ("s3", None, "held_out_pairs", ["change", "becomes"]),
    ("graded", None, "interpolation", ["speed", "size"]),
    ("d2", None, "named", []),
    ("s1", 0.25, "uncovered", []),
]


def write_model(folder: Path, track: str, coverage: float | None) -> Path:
    """A prepared recipe of random weights on a collection of a track."""
    write_collection(folder / "shapes", 6, 0, track, SIZE, 8.0, write_video, coverage=coverage)
    values: dict[str, Any] = {
        "run_dir": str(folder / "run"), "cache_dir": str(folder / "cache"),
        "data": {"path": str(folder / "shapes"), "frames": 16, "fps": 8, "width": 64, "height": 64, "validation": 0},
        "codec": {"type": "pca", "block": [4, 8, 8], "channels": 16},
        "text": {"type": "native", "vocab_size": 300, "width": 32, "depth": 1},
        "model": {"type": "dit", "width": 32, "depth": 1, "heads": 2},
        "sampling": SAMPLING,
    }  # fmt: skip
    recipe = Recipe.parse(values)
    prepare(recipe)
    recipe.save(folder / "recipe.yaml")
    return folder / "recipe.yaml"


def evaluate(path: Path, *splits: str) -> Benchmark:
    return run_benchmark(load_model(str(path)), SamplingConfig.parse(SAMPLING), CPU, 3, splits)


@pytest.mark.parametrize(("track", "coverage", "split", "columns"), TRACKS)
def test_every_track_is_asked_and_read_in_its_own_words(tmp_path, track, coverage, split, columns):
    model = write_model(tmp_path, track, coverage)
    result = evaluate(model, split)
    renderer = next(row for row in result.rows if row.name == "renderer")
    assert renderer.split == split and renderer.scores.joint.share == 1.0
    headers, cells = tabulate(result.rows)
    assert set(columns) <= set(headers) and (columns or headers == HEADERS)
    assert all(len(row) == len(headers) for row in cells) and len(cells) == len(result.rows) == 11
    assert result.track == track and checker_of(tmp_path / "shapes") == checker_hash(track)
    assert list(result.confusions) == [split]

    row = read_collection(tmp_path / "shapes", 6, lambda *_: None)
    assert row.scores.joint.share == 1.0 and row.scores.joint.n + row.scores.still.n == 6
    with pytest.raises(UsageError, match=f"--split train: not a split of track {track}.*known: "):
        evaluate(model, "train")

    run = RunDirectory.create(tmp_path / "run")
    page = write_benchmark_page(run, result, "measured by a test").read_text()
    assert f"Track {track}." in page and "measured by a test" in page and "http" not in page.split("</style>")[1]
    for word in renderer.scores.factors:
        assert f"<figcaption>{word}</figcaption>" in page


def test_the_worst_come_first_and_the_right_not_at_all():
    asked = {"in_distribution": prompts("in_distribution", 4, 0), "held_out_pairs": prompts("held_out_pairs", 2, 0)}
    shown = {split: [p.stated[0] for p in of_split] for split, of_split in asked.items()}
    first, second, third, _ = shown["in_distribution"]
    read = {
        "in_distribution": [first, Factors(second.shape), Factors(), shown["in_distribution"][3]],
        "held_out_pairs": [Factors(shown["held_out_pairs"][0].shape), shown["held_out_pairs"][1]],
    }
    assert third.shape, "a prompt states three words"
    readings = {split: [Reading(factors, None) for factors in of_split] for split, of_split in read.items()}
    videos = {
        split: [np.full((4, 16, 16, 3), i, np.uint8) for i in range(len(of_split))] for split, of_split in asked.items()
    }
    worst = _worst(asked, videos, readings, videos, SIZE, 8.0)
    counts = [wrong_factors(p, r) for split in asked for p, r in zip(asked[split], readings[split], strict=True)]
    assert sorted(count for count in counts if count) == [2, 2, 3] and len(worst) == 3 <= WORST
    assert [int(one.video[0, 0, 0, 0]) for one in worst] == [2, 1, 0]
    assert worst[0].label.startswith("in_distribution: ") and worst[0].label.endswith("wrong, read nothing")
    assert worst[2].label.startswith("held_out_pairs: ")
