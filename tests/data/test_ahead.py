"""Steps made ahead: in order, each once, by another thread; errors come where their step is taken."""

from __future__ import annotations

import threading

import pytest

from reelwright.data.ahead import Ahead


def test_each_step_is_made_once_and_before_it_is_taken() -> None:
    made: list[int] = []
    began = {step: threading.Event() for step in range(5)}

    def make(step: int) -> tuple[int, int]:
        made.append(step)
        began[step].set()
        return step, threading.get_ident()

    with Ahead(make, end=4) as ahead:
        for step in range(4):
            assert ahead.take(step)[0] == step
            if step + 1 < 4:
                assert began[step + 1].wait(10), "the next step is made while nobody asks for it"
        assert ahead.take(0)[1] != threading.get_ident()
    assert made[:4] == [0, 1, 2, 3]
    assert not began[4].is_set(), "nothing is made from the end on"


def test_an_error_comes_with_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("step two")
        return step

    with Ahead(make, end=4) as ahead:
        assert [ahead.take(0), ahead.take(1)] == [0, 1]
        with pytest.raises(ValueError, match="step two"):
            ahead.take(2)


def test_leaving_waits_for_what_is_being_made_and_starts_nothing_more() -> None:
    began, release, ended = threading.Event(), threading.Event(), threading.Event()

    def make(step: int) -> int:
        if step == 1:
            began.set()
            release.wait(10)
            ended.set()
        return step

    with Ahead(make, end=9) as ahead:
        ahead.take(0)
        assert began.wait(10)
        release.set()
    assert ended.is_set()
