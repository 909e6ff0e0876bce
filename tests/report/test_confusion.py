from __future__ import annotations

import re

import pytest

from reelwright.report.confusion import NOT_READ, confusion_matrix


def test_every_word_and_count_is_in_the_picture():
    counts = {("red", "red"): 41, ("red", "blue"): 3, ("blue", None): 7, ("blue", "mauve"): 12}
    svg = confusion_matrix("colour", counts)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"red", "blue", "mauve", NOT_READ, "41", "3", "7", "12"} <= {text.strip() for text in texts}
    assert "currentColor" in svg and svg == confusion_matrix("colour", counts), "the same counts, the same bytes"


def test_words_cannot_break_the_picture():
    assert "<b>" not in confusion_matrix("x", {("<b>$x$", "\x00"): 1})


def test_no_counts_are_refused():
    with pytest.raises(ValueError, match="shape: there are no counts"):
        confusion_matrix("shape", {})
