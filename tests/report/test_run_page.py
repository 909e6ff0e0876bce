import json
import math
import re
from pathlib import Path

import pytest

from reelwright.report.run_page import write_run_page
from reelwright.run import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "shapes")


def page_of(run: RunDirectory) -> str:
    assert write_run_page(run) == run.report_path
    return run.report_path.read_text(encoding="utf-8")


def add_held_out(run: RunDirectory, *losses: tuple[float, float, float]) -> None:
    for index, (loss, low, high) in enumerate(losses):
        record = {"step": 100 * index, "heldout_loss": loss, "heldout_low": low, "heldout_high": high}
        run.append_metrics(record | {"heldout_by_time": [loss, 2 * loss]})


def test_an_empty_run_has_a_page(run: RunDirectory) -> None:
    page = page_of(run)
    assert "No training step was logged yet" in page and "cannot be said yet" in page


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([(1.0, 0.9, 1.1), (0.5, 0.4, 0.6)], "Getting better"),
        ([(1.0, 0.9, 1.1), (0.95, 0.85, 1.05)], "Probably getting better"),
        ([(1.0, 0.9, 1.1), (1.1, 1.0, 1.2)], "Not getting better"),
        ([(1.0, 0.9, 1.1), (0.3, 0.2, 0.4), (0.6, 0.5, 0.7)], "Getting worse"),
        ([(1.0, math.nan, math.nan), (0.5, math.nan, math.nan)], "Probably getting better"),
        ([(1.0, 0.9, 1.1)], "cannot be said yet"),
    ],
)
def test_the_page_says_whether_it_gets_better(run: RunDirectory, losses: list, verdict: str) -> None:
    add_held_out(run, *losses)
    verdicts = re.findall(r'<div class="card verdict[^>]*>([^<]*)', page_of(run))
    assert len(verdicts) == 1 and verdict in verdicts[0]


def test_a_loss_of_training_clips_is_called_one(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "heldout_loss": 0.5, "heldout_split": "train"})
    page = page_of(run)
    assert "loss of training clips, last" in page and "held-out loss, last" not in page and "memory only" in page


def test_everything_in_the_run_is_on_the_page(run: RunDirectory) -> None:
    run.write_recipe({"seed": 0, "data": {"path": "<clips>"}})
    for step in range(1, 301):
        record = {"step": step, "loss": 1 / step, "learning_rate": 1e-4, "grad_norm": 0.5, "samples_per_second": 24.5}
        run.append_metrics(record | ({"loss": math.nan} if step == 7 else {}))
    add_held_out(run, (1.0, 0.9, 1.1), (0.5, 0.4, 0.6))
    for step in range(100, 1100, 100):
        path = run.sample_path(step, 0)
        path.write_bytes(b"video")
        path.with_name(path.name + ".json").write_text(json.dumps({"prompt": f"a <ball> at {step}", "seed": 3}))
    (run.samples / "step-0001000.png").write_bytes(b"a contact sheet")
    (run.samples / "notes.txt").write_text("no sample")
    (run.samples / "step-0000050-00.mp4").write_bytes(b"no recipe beside it")
    run.write_scores(
        [{"row": "model", "metric": "joint accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 256}],
        {"steps_trained": 1000},
    )
    page = page_of(run)
    assert "300 training steps" in page
    assert "path: &#x27;&lt;clips&gt;&#x27;" in page or "path: &lt;clips&gt;" in page
    assert "a &lt;ball&gt; at 1000 · seed 3" in page, "the newest sample is shown"
    assert page.count("<video") == 5 and "6 more in samples/" in page
    assert page.index("Step 1,000") < page.index("Step 50<")
    assert page.count("<svg") == 3
    assert "joint accuracy" in page and "24.5" in page
    assert not re.search(r"https?://", page)


def test_a_page_is_made_while_training_writes(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert "1 training steps" in page_of(run)
