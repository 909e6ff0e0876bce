"""Every clip of a collection looked at once: its bytes' hash, what decoding it shows, and its scene cuts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import PROBE_VERSION, BadVideo, VideoInfo, probe
from reelwright.data.fingerprints import FileHashes
from reelwright.data.sandbox import Decoders, Unfinished
from reelwright.data.scenes import SCENES_VERSION, check_extra, find_cuts
from reelwright.data.sources import Dropped
from reelwright.durable import sha256_of
from reelwright.types import Clip, VideoFile

AHEAD = 2  # clips asked for ahead of the one that is waited for, per decoding child

Progress = Callable[[int, int, str], None]  # clips done, clips in all, id of the one just done
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """A clip whose file decodes."""

    clip: Clip
    sha256: str  # of the file
    info: VideoInfo
    cuts: tuple[float, ...] | None = None  # seconds after the first timestamp; None: not looked for


def look_at(
    clips: Sequence[Clip],
    config: DataConfig,
    cache: Cache | None = None,
    decoders: Decoders | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> Iterator[Seen | Dropped]:
    """The clips in their order, or why they cannot be used; several are decoded at once.

    With a `cache`, what was found of the same bytes before is not looked for again, whether good or bad.
    """
    if config.scene_cuts is not None:
        check_extra()
    with nullcontext(decoders) if decoders is not None else Decoders(limits=config.limits) as pool:
        work = _Work(pool, cache, config.scene_cuts, verify)
        seen = ahead(clips, work.probe, AHEAD * pool.workers)
        if config.scene_cuts is not None:
            seen = ahead(seen, work.find_cuts, AHEAD * pool.workers)
        for done, (clip, item) in enumerate(zip(clips, seen, strict=True), start=1):
            if progress is not None:
                progress(done, len(clips), clip.id)
            yield item


def check_unchanged(files: FileHashes, video: VideoFile, sha256: str) -> None:
    """Unfinished where a file does not hold the bytes of this hash any more: what was read of it may be of others."""
    try:
        now = files.sha256(video)
    except OSError as error:
        raise Unfinished(f"cannot be read: {error.strerror or error}") from None
    if now != sha256:
        raise Unfinished("changed while it was read")


def ahead(items: Iterable[Item], start: Callable[[Item], Callable[[], Result]], depth: int) -> Iterator[Result]:
    """start(item)() of each item in order, started up to `depth` items earlier."""
    begun: deque[Callable[[], Result]] = deque()
    for item in items:
        begun.append(start(item))
        if len(begun) > depth:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


class _Work:
    """Starts what has to be found out, each file's once; what starts it gives a function that waits for the result."""

    def __init__(self, pool: Decoders, cache: Cache | None, threshold: float | None, verify: bool) -> None:
        self._pool, self._cache, self._threshold, self._verify = pool, cache, threshold, verify
        self._found: dict[str, Future[Any]] = {}  # by what it is of which bytes
        self._read: dict[str, VideoFile] = {}  # the file it is found out from

    def probe(self, clip: Clip) -> Callable[[], Seen | Dropped]:
        try:
            sha256 = self._sha256(clip)
        except BadVideo as bad:
            lost = Dropped(clip.id, str(bad))
            return lambda: lost
        key = f"{PROBE_VERSION}/{sha256}"
        future = self._begin(key, clip.video, VideoInfo.from_plain, lambda: self._pool.submit(probe, clip.video))

        def finish() -> Seen | Dropped:
            info = self._result(key, sha256, future, VideoInfo.to_plain)
            return Dropped(clip.id, info) if isinstance(info, str) else Seen(clip, sha256, info)

        return finish

    def find_cuts(self, seen: Seen | Dropped) -> Callable[[], Seen | Dropped]:
        threshold = self._threshold
        if isinstance(seen, Dropped) or threshold is None:
            return lambda: seen
        detector = f"{SCENES_VERSION}/{version('scenedetect')}"
        key = f"scenes/{detector}/{PROBE_VERSION}/{threshold!r}/{seen.sha256}"
        video, info = seen.clip.video, seen.info
        future = self._begin(
            key, video, lambda plain: tuple(plain["cuts"]), lambda: self._pool.submit(find_cuts, video, info, threshold)
        )

        def finish() -> Seen | Dropped:
            cuts = self._result(key, seen.sha256, future, lambda cuts: {"cuts": list(cuts)})
            if isinstance(cuts, str):
                return Dropped(seen.clip.id, f"looking for scene cuts: {cuts}")
            return Seen(seen.clip, seen.sha256, info, cuts)

        return finish

    def _sha256(self, clip: Clip) -> str:
        try:
            if not clip.video.is_file():
                raise BadVideo("not a regular file")
            if self._cache is None:
                return sha256_of(clip.video)
            return self._cache.files.sha256(clip.video, self._verify)
        except OSError as error:
            raise BadVideo(f"cannot be read: {error.strerror or error}") from None

    def _begin(
        self,
        key: str,
        video: VideoFile,
        from_plain: Callable[[dict[str, Any]], Result],
        start: Callable[[], Future[Result]],
    ) -> Future[Result]:
        """The result's future: of this very session, remembered in the cache, or started now."""
        if key in self._found:
            return self._found[key]
        known = self._cache.probes.get(key) if self._cache is not None else None
        if known is None:
            future = start()
        else:
            future = Future()
            if "bad" in known:
                future.set_exception(BadVideo(known["bad"]))
            else:
                future.set_result(from_plain(known))
        self._found[key], self._read[key] = future, video
        return future

    def _result(
        self, key: str, sha256: str, future: Future[Result], to_plain: Callable[[Result], dict[str, Any]]
    ) -> Result | str:
        """What was found, or why nothing was.

        Remembered unless a limit or something outside the file ended it, or the file changed meanwhile.
        """
        try:
            result: Result | str = future.result()
        except Unfinished as bad:
            return str(bad)
        except BadVideo as bad:
            result = str(bad)
        if self._cache is not None and self._cache.probes.get(key) is None:
            try:
                check_unchanged(self._cache.files, self._read[key], sha256)
            except Unfinished as changed:
                return str(changed)
            self._cache.probes.put(key, {"bad": result} if isinstance(result, str) else to_plain(result))
        return result
