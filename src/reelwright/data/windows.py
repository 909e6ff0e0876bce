"""Windows of a collection's clips, decoded ahead by a pool of child processes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from reelwright.data.augmentation import VariantPlan, Window, apply
from reelwright.data.decode import BadVideo, VideoInfo, read_spread, read_window
from reelwright.data.fingerprints import FileHashes
from reelwright.data.inspection import Inspection, Sample
from reelwright.data.probing import check_unchanged
from reelwright.data.sandbox import Decoders
from reelwright.data.sources import Dropped
from reelwright.types import VideoFile

# Both keep a whole `prepare` far below 1.5 GB, whatever the number of clips or cores; torch and a codec need half of
# that. What does not fit is decoded a second time, or a moment later.
KEPT_BYTES = 128 << 20  # of windows the codec was fitted on, kept for encoding
AHEAD_BYTES = 128 << 20  # of windows being decoded, or waiting to be taken


@dataclass(frozen=True)
class Piece:
    """One latent to be made."""

    sample: Sample
    key: str  # of the latent in the cache
    plan: VariantPlan  # its window says what to read, its size what comes out


class WindowReader:
    """Decoded windows, read ahead; those the codec was fitted on are kept for encoding while they fit.

    With `files`, a window of a file that changed since it was inspected is not handed out: its latent's key, and what
    is known of its frames, are of other bytes.
    """

    def __init__(self, inspection: Inspection, decoders: Decoders, files: FileHashes | None = None) -> None:
        self._inspection, self._decoders, self._files = inspection, decoders, files
        self._kept: dict[tuple[int, str], np.ndarray] = {}  # by sample and variant: the codec is not known yet
        self._kept_bytes = 0
        self._dropped: dict[str, Dropped] = {}

    @property
    def dropped(self) -> list[Dropped]:
        """Clips that turned out not to be usable, each once, in the order they were met."""
        return list(self._dropped.values())

    def read(self, pieces: Sequence[Piece], keep: bool = False) -> Iterator[tuple[Piece, np.ndarray]]:
        """(piece, uint8 `f h w c` of its plan's size) in order, augmented as its plan says.

        A clip that does not decode is left out and named in `dropped`.
        """
        ahead: deque[tuple[Piece, Future[np.ndarray]]] = deque()
        ahead_bytes = 0
        try:
            for piece in pieces:
                size = _num_bytes(piece)
                while ahead and (len(ahead) > 2 * self._decoders.workers or ahead_bytes + size > AHEAD_BYTES):
                    ahead_bytes -= _num_bytes(ahead[0][0])
                    yield from self._taken(*ahead.popleft(), keep)
                ahead.append((piece, self._decoded(piece)))
                ahead_bytes += size
            while ahead:
                yield from self._taken(*ahead.popleft(), keep)
        finally:  # nobody will take these
            for _, future in ahead:
                future.cancel()

    def drop(self, sample: Sample, reason: str) -> None:
        """Name the sample's clip as lost, once."""
        self._dropped.setdefault(sample.clip.id, Dropped(sample.clip.id, reason))

    def _decoded(self, piece: Piece) -> Future[np.ndarray]:
        kept = self._kept.pop((piece.sample.index, piece.plan.key), None)
        if kept is None:
            sample = piece.sample
            return submit_window(self._decoders, sample.clip.video, piece.plan.window, self._inspection.info(sample))
        self._kept_bytes -= kept.nbytes
        future: Future[np.ndarray] = Future()
        future.set_result(kept)
        return future

    def _taken(self, piece: Piece, future: Future[np.ndarray], keep: bool) -> Iterator[tuple[Piece, np.ndarray]]:
        try:
            frames = future.result()
            if self._files is not None:
                check_unchanged(self._files, piece.sample.clip.video, piece.sample.sha256)
        except BadVideo as bad:
            self.drop(piece.sample, str(bad))
            return
        if keep and self._kept_bytes + frames.nbytes <= KEPT_BYTES:
            self._kept[piece.sample.index, piece.plan.key] = frames
            self._kept_bytes += frames.nbytes
        yield piece, apply(piece.plan, frames)


def submit_window(decoders: Decoders, video: VideoFile, window: Window, info: VideoInfo) -> Future[np.ndarray]:
    """The pictures of a window, uint8 `f h w c`, from the pool."""
    if window.end_seconds is None:
        return decoders.submit(read_window, video, window.size, window.fps, window.start_seconds, info)
    return decoders.submit(read_spread, video, window.size, info, window.start_seconds, window.end_seconds)


def _num_bytes(piece: Piece) -> int:
    """Of its decoded window."""
    return math.prod(piece.plan.window.size.tuple) * 3
