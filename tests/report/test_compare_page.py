"""The page of a comparison: one file, offline, escaped, and honest where something is missing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from reelwright.report.compare_page import write_comparison_page
from reelwright.report.compare_plots import arm_curves


def run(name: str, arm: str | None, loss: float | None = 0.5, **more: Any) -> dict[str, Any]:
    curve = [[10, 1.0, None, None], [20, loss, None, None]]
    measures = {} if loss is None else {"held-out loss": loss}
    return {
        "name": name, "arm": arm, "seed": 0, "status": "done", "problems": [], "measures": measures, "curve": curve,
        "data_sha256": "d" * 64, "checker": None, **more,
    }  # fmt: skip


def arm(loss: float | None, *runs: str) -> dict[str, Any]:
    measured = {} if loss is None else {"held-out loss": {"mean": loss, "low": None, "high": None, "n": 1}}
    return {"runs": list(runs), "seeds": [0], "measures": measured}


@pytest.fixture
def facts() -> dict[str, Any]:
    return {
        "title": "Does <rate> matter?", "experiment": True, "warnings": [], "method": "By the t test.",
        "factors": {"rate": ["a", "b"]}, "effects": [],
        "answers": [{"sentence": "rate: it does", "verdict": "larger"}, {"sentence": "x: equal", "verdict": "equal"}],
        "differences": {"train.learning_rate": {"r0": 0.1, "r1": None}, "seed": {"r0": 0, "r1": 1}},
        "arms": {"a": arm(0.5, "r0"), "b": arm(0.7, "r1")},
        "runs": [run("r0", "a", peak_memory_bytes=2**29, minutes_in_all=1.5), run("r1", "b", 0.7)],
    }  # fmt: skip


def page_of(facts: dict[str, Any], tmp_path: Path, **more: Any) -> str:
    write_comparison_page(facts, tmp_path / "page.html", **more)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_all_of_it_is_on_one_offline_page(facts: dict[str, Any], tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.mp4").write_bytes(b"video %d" % number)
    videos = [("a <ball> · seed 0", [(tmp_path / "0.mp4", "a"), (tmp_path / "1.mp4", "b")])]
    page = page_of(facts, tmp_path, videos=videos, texts=[("spec", "question: <why>")])
    assert "Does &lt;rate&gt; matter?" in page and "<rate>" not in page and "<ball>" not in page
    assert page.count("<video") == 2 and page.count("<svg") == 2 and not re.search(r"https?://", page)
    assert page.index("rate: it does") < page.index("By the t test.") < page.index("What differs")
    assert re.search(r'verdict good">rate: it does', page) and re.search(r'verdict">x: equal', page)
    assert (
        "<td>0.1</td>" in page and "<td>not set</td>" in page and "512 MiB" in page and "question: &lt;why&gt;" in page
    )


def test_a_loss_of_training_clips_is_called_one(facts: dict[str, Any], tmp_path: Path) -> None:
    assert "of training" not in page_of(facts, tmp_path)
    facts["runs"][1]["heldout_split"] = "train"
    assert "Of r1: clips of training, as none is held out" in page_of(facts, tmp_path)


def test_warnings_stand_first(facts: dict[str, Any], tmp_path: Path) -> None:
    page = page_of({**facts, "warnings": ["Different data: <x>"]}, tmp_path)
    assert page.index('verdict bad">Different data: &lt;x&gt;') < page.index("The answer")


def test_runs_that_failed_have_a_row_and_their_reason(facts: dict[str, Any], tmp_path: Path) -> None:
    facts["runs"].append({**run("r2", None, None), "curve": [], "status": "failed", "reason": "out of memory"})
    page = page_of(facts, tmp_path)
    assert "out of memory" in page and "2 of 3" in page


def test_one_run_and_nothing_measured(facts: dict[str, Any], tmp_path: Path) -> None:
    lonely = {
        **facts,
        "experiment": False,
        "answers": [],
        "arms": {"a": arm(None, "r0")},
        "runs": [run("r0", "a", None)],
    }
    lonely["runs"][0]["curve"] = [[10, None, None, None]]
    page = page_of(lonely, tmp_path)
    assert "<svg" not in page and "What differs" not in page and "The answer" not in page and "r0" in page
    waiting = {**run("r0", None, None), "curve": [], "status": "waiting"}
    assert "0 of 1" in page_of({**facts, "answers": [], "arms": {}, "runs": [waiting]}, tmp_path)


def test_no_answer_by_hand_says_what_it_takes(facts: dict[str, Any], tmp_path: Path) -> None:
    assert "two or more shared seeds" in page_of({**facts, "experiment": False, "answers": []}, tmp_path)


def test_other_measures_have_their_table(facts: dict[str, Any], tmp_path: Path) -> None:
    effect = {"factor": "rate", "level": "b", "reference": "a", "measure": "joint accuracy", "verdict": "not larger"}
    page = page_of({**facts, "effects": [{**effect, "difference": 0.25, "low": -0.5, "high": 1.0}]}, tmp_path)
    assert "b minus a" in page and "-0.5, 1" in page and "One in twenty" in page


def test_curves_of_many_arms_and_of_what_is_not_finite() -> None:
    svg = arm_curves({f"arm {n}": [[(1, 1.0 + n), (2, math.nan), (3, 0.5)]] for n in range(40)})
    assert len(set(re.findall(r"arm \d+", svg))) == 40 and "nan" not in svg
    with pytest.raises(ValueError, match="no finite loss"):
        arm_curves({"a": [[(1, math.nan)]], "b": []})
