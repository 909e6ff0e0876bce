"""Items made ahead: in order, each once, by another thread; errors come where their item is taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from reelwright.data.ahead import Ahead


def test_each_item_is_made_once_and_before_it_is_taken() -> None:
    made: list[int] = []
    began = [threading.Event() for _ in range(4)]

    def items() -> Iterator[tuple[int, int]]:
        for number in range(4):
            made.append(number)
            began[number].set()
            yield number, threading.get_ident()

    with Ahead(items()) as ahead:
        for number in range(4):
            taken, thread = ahead.take()
            assert taken == number and thread != threading.get_ident()
            if number < 3:
                assert began[number + 1].wait(10), "the next is made while nobody asks for it"
                assert made == list(range(number + 2)), "and none after it"
    assert made == [0, 1, 2, 3]


def test_an_error_comes_with_its_own_item() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("the third")

    with Ahead(items()) as ahead:
        assert [ahead.take(), ahead.take()] == [0, 1]
        with pytest.raises(ValueError, match="the third"):
            ahead.take()


def test_leaving_waits_for_what_is_being_made_and_begins_nothing_more() -> None:
    began, release, made = threading.Event(), threading.Event(), []

    def items() -> Iterator[int]:
        yield 0
        began.set()
        release.wait(10)
        made.append(1)
        yield 1
        made.append(2)
        yield 2

    later = threading.Timer(0.2, release.set)
    with Ahead(items()) as ahead:
        ahead.take()
        assert began.wait(10)
        later.start()
    assert made == [1]
