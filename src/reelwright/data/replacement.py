"""A prepared sample that does not read gives its place to the next one of its bucket, and is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reelwright.data.dataset import BadSample, CachedDataset
from reelwright.types import Batch, UserError

Item = tuple[int, int]  # sample index, epoch


class ReplacingReader:
    """Batches of a split in which every sample reads.

    Which sample stands in for another depends on what is in the cache alone, never on what was read before: a run that
    is resumed, or shared by other processes, draws the same.
    """

    def __init__(self, dataset: CachedDataset) -> None:
        self._dataset = dataset
        self._following: dict[int, int] = {}
        for indices in dataset.buckets().values():
            self._following.update(zip(indices, [*indices[1:], indices[0]], strict=True))
        self.bad: dict[int, str] = {}  # sample index -> why it does not read, in the order they were met
        self._told = 0

    def load(self, items: Sequence[Item], seed: int, caption_dropout: float = 0.0) -> Batch:
        """As `CachedDataset.load`. UserError where no sample of the bucket reads."""
        try:
            return self._dataset.load(items, seed, caption_dropout)
        except BadSample:
            sound = [self._sound(item, seed, caption_dropout) for item in items]
            return self._dataset.load(sound, seed, caption_dropout)

    def found_bad(self) -> list[int]:
        """Samples of `bad` that were met since this was last asked."""
        found = list(self.bad)[self._told :]
        self._told = len(self.bad)
        return found

    def why(self, item: Item, seed: int) -> str:
        """Why a sample does not read; it is tried here where another process found so."""
        if item[0] not in self.bad:
            self._reads(item, seed, 0.0)
        return self.bad.get(item[0], "another process could not")

    def _sound(self, item: Item, seed: int, caption_dropout: float) -> Item:
        for candidate in self._from(item):
            if self._reads(candidate, seed, caption_dropout):
                return candidate
        size = self._dataset.samples[item[0]].size
        raise UserError(f"no sample of {size} can be read from the cache any more: {self.bad[item[0]]}")

    def _reads(self, item: Item, seed: int, caption_dropout: float) -> bool:
        try:
            self._dataset.load([item], seed, caption_dropout)
        except BadSample as bad:
            self.bad.setdefault(bad.index, bad.reason)
            return False
        return True

    def _from(self, item: Item) -> Iterator[Item]:
        """The item itself, then the others of its bucket in turn, in the same epoch."""
        yield item
        index, epoch = self._following[item[0]], item[1]
        while index != item[0]:
            yield index, epoch
            index = self._following[index]


def readable(dataset: CachedDataset, items: Sequence[Item], seed: int) -> list[Item]:
    """Those of the items that read: for measurements, where none may stand in for another."""
    try:
        dataset.load(items, seed)
        return list(items)
    except BadSample:
        pass
    sound = []
    for item in items:
        try:
            dataset.load([item], seed)
        except BadSample:
            continue
        sound.append(item)
    return sound
