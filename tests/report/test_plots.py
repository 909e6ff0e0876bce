import math
import xml.etree.ElementTree as ElementTree

import pytest

from reelwright.report.plots import held_out_by_time, loss_curve, score_bars

TRAIN = [(step, 2.0 / step) for step in range(1, 200)]
HELD_OUT = [(step, 2.2 / step, 2.0 / step, 2.4 / step) for step in range(10, 200, 10)]


def letters(svg: str) -> str:
    """All text an SVG shows; fails where it is no XML."""
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_a_loss_curve_shows_its_parts() -> None:
    text = letters(loss_curve(TRAIN, HELD_OUT, [(step, 1e-4) for step in range(1, 200)]))
    for part in ("training", "held-out, 95 % interval", "learning rate", "step"):
        assert part in text
    assert "held-out" not in letters(loss_curve(TRAIN))


def test_a_plot_takes_the_colour_of_its_page_and_is_reproducible() -> None:
    svg = loss_curve(TRAIN, HELD_OUT)
    assert "currentColor" in svg and "#0b0c0d" not in svg
    assert svg == loss_curve(TRAIN, HELD_OUT)


def test_values_that_are_not_finite_are_left_out() -> None:
    holes = [(1, 1.0), (2, math.nan), (3, math.inf), (4, None), (5, 0.5)]
    assert "nan" not in loss_curve(holes, [(1, 1.0, math.nan, math.inf), (2, math.nan, 0.0, 1.0)]).lower()  # pyright: ignore
    with pytest.raises(ValueError, match="no finite loss"):
        loss_curve([(1, math.nan)])


@pytest.mark.parametrize("train", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -3.0), (2, 5.0)], [(1, 1e-12), (2, 1e12)]])
def test_odd_losses_are_drawn(train: list[tuple[float, float]]) -> None:
    letters(loss_curve(train))


def test_held_out_by_time_shows_first_and_newest() -> None:
    text = letters(held_out_by_time({step: [0.1 * step, 0.2 * step] for step in range(100, 2100, 100)}))
    assert "step 100" in text and "step 2000" in text and text.count("step") <= 6
    letters(held_out_by_time({1: [math.nan, math.nan]}))
    with pytest.raises(ValueError, match="at least one step"):
        held_out_by_time({})


def test_scores_show_values_and_any_name() -> None:
    rows = [
        {"row": "model <b> $x_1$ ü \x00\ud800", "metric": "joint", "value": 0.512, "low": 0.4, "high": 0.6},
        {"row": "chance", "metric": "joint", "value": 0.125},
        {"row": "model", "metric": "colour", "value": -1, "low": None, "high": math.inf},
        {"row": "left out", "metric": "colour", "value": None},
    ]
    text = letters(score_bars(rows).encode("utf-8", "strict").decode())
    for part in ("0.512", "0.125", "joint", "colour", "model <b> $x_1$ ü", "chance"):
        assert part in text
    assert "left out" not in text
    with pytest.raises(ValueError, match="no score"):
        score_bars(rows[-1:])
