"""Another sample stands in for one that does not read: the next of its bucket, whatever was read before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelwright.data.dataset import BadSample
from reelwright.data.replacement import ReplacingReader, readable
from reelwright.types import Size, UserError

SIZES = (Size(8, 16, 16), Size(4, 16, 16))


class _Dataset:
    """What the reader sees of a `CachedDataset`: sample k is of bucket k % 2; a batch is the items themselves."""

    def __init__(self, count: int, bad: set[tuple[int, int]]) -> None:
        self._bad = bad
        self.samples = {index: type("Sample", (), {"size": SIZES[index % 2]}) for index in range(count)}

    def buckets(self) -> dict[Size, list[int]]:
        return {SIZES[k]: list(range(k, len(self.samples), 2)) for k in range(min(2, len(self.samples)))}

    def load(self, items: Sequence[tuple[int, int]], seed: int, caption_dropout: float = 0.0) -> Any:
        for item in items:
            if item in self._bad:
                raise BadSample(item[0], f"c{item[0]}.mp4", "damaged")
        return list(items)


items = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(items, st.sets(st.tuples(st.integers(0, 11), st.integers(0, 2)), max_size=24), items)
def test_it_does_not_depend_on_what_was_read_before(
    wanted: list[tuple[int, int]], bad: set[tuple[int, int]], earlier: list[tuple[int, int]]
) -> None:
    bad -= {(10, epoch) for epoch in range(3)} | {(11, epoch) for epoch in range(3)}  # some of each bucket are sound
    dataset: Any = _Dataset(12, bad)
    used = ReplacingReader(dataset)
    used.load(earlier, seed=0)
    got: Any = used.load(wanted, seed=0)
    assert got == ReplacingReader(dataset).load(wanted, seed=0)
    assert len(got) == len(wanted)
    for (index, epoch), (other, same_epoch) in zip(wanted, got, strict=True):
        assert same_epoch == epoch and other % 2 == index % 2 and (other, epoch) not in bad
        between = range(index, other if other >= index else other + 12, 2)
        assert all((passed % 12, epoch) in bad for passed in between), "the next one that reads"
    assert set(used.bad) <= {index for index, _ in bad}
    assert readable(dataset, wanted, seed=0) == [item for item in wanted if item not in bad]


def test_each_bad_sample_is_named_once() -> None:
    dataset: Any = _Dataset(12, {(2, 0), (4, 0), (2, 1)})
    reader = ReplacingReader(dataset)
    assert reader.load([(0, 0), (2, 0)], seed=0) == [(0, 0), (6, 0)]
    assert reader.found_bad() == [2, 4]
    assert reader.load([(2, 1)], seed=0) == [(4, 1)]
    assert reader.found_bad() == []
    assert reader.bad == {2: "damaged", 4: "damaged"}
    other = ReplacingReader(dataset)
    assert (other.why((2, 0), seed=0), other.why((6, 0), seed=0)) == ("damaged", "another process could not")


def test_a_bucket_of_which_nothing_reads_ends_it() -> None:
    dataset: Any = _Dataset(4, {(0, 0), (2, 0)})
    with pytest.raises(UserError, match="no sample of 8x16x16 can be read from the cache any more: damaged"):
        ReplacingReader(dataset).load([(0, 0)], seed=0)
