"""Windows of a collection's clips, decoded ahead by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from reelwright.data.decode import BadVideo, read_window
from reelwright.data.inspection import Inspection, Sample
from reelwright.data.sources import Dropped

KEPT_BYTES = 512 << 20


class WindowReader:
    """Decoded windows, read ahead by threads; those the codec was fitted on are kept for encoding while they fit."""

    def __init__(self, inspection: Inspection, fps: float) -> None:
        self._fps = fps
        self._inspection = inspection
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0
        self.dropped: list[Dropped] = []

    def read(self, samples: Sequence[Sample], keep: bool = False) -> Iterator[tuple[Sample, np.ndarray]]:
        """(sample, uint8 `f h w c`) in order; a clip that does not decode is left out and named in `dropped`."""
        workers = max(1, min(8, os.cpu_count() or 1))
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque[tuple[Sample, Future[np.ndarray]]] = deque()
            for sample in samples:
                ahead.append((sample, pool.submit(self._decode, sample)))
                if len(ahead) > 2 * workers:
                    yield from self._taken(*ahead.popleft(), keep)
            while ahead:
                yield from self._taken(*ahead.popleft(), keep)

    def drop(self, sample: Sample, reason: str) -> None:
        """Name the sample's clip as lost, once."""
        if sample.clip.id not in {item.id for item in self.dropped}:
            self.dropped.append(Dropped(sample.clip.id, reason))

    def _decode(self, sample: Sample) -> np.ndarray:
        kept = self._kept.pop(sample.index, None)
        if kept is not None:
            return kept
        info = self._inspection.info(sample)
        return read_window(sample.clip.video, sample.size, self._fps, sample.start_seconds, info)

    def _taken(self, sample: Sample, future: Future[np.ndarray], keep: bool) -> Iterator[tuple[Sample, np.ndarray]]:
        try:
            frames = future.result()
        except (BadVideo, OSError) as error:
            self.drop(sample, str(error))
            return
        if keep and self._kept_bytes + frames.nbytes <= KEPT_BYTES:
            self._kept[sample.index] = frames
            self._kept_bytes += frames.nbytes
        yield sample, frames
