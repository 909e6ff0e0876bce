"""What of a collection is used, what is dropped and why, how it falls into buckets, and which part is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reelwright.data.buckets import assign, window_starts
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import PROBE_VERSION, BadVideo, VideoInfo, probe
from reelwright.data.fingerprints import content_sha256
from reelwright.data.sources import Dropped, Listing, read_listing
from reelwright.randomness import derive_seed
from reelwright.types import Clip, Size, UserError

MIN_SOURCES_FOR_VALIDATION = 8  # from here on a validation fraction above 0 holds out at least one source

Progress = Callable[[int, int, str], None]  # clips done, clips in all, id of the one just done
CheckCaption = Callable[[str], str | None]  # a caption -> what is wrong with it for the text encoder, or None


@dataclass(frozen=True)
class Sample:
    """One window of one clip, ready to be decoded."""

    index: int  # global: in the order of (clip id, window)
    clip: Clip
    window: int
    start_seconds: float  # after the clip's first timestamp
    size: Size
    split: str  # "train" or "validation"
    sha256: str  # of the file


@dataclass(frozen=True)
class Inspection:
    """The plan of a collection: `samples` are what `prepare` encodes."""

    format: str
    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[Dropped, ...]  # used, but worth knowing: a smaller bucket, repeated frames, a doubled file ...
    infos: dict[str, VideoInfo]  # by sha256 of the file
    num_clips: int  # used and dropped together

    def info(self, sample: Sample) -> VideoInfo:
        """What decoding the sample's file showed; `decode.read_window` takes it."""
        return self.infos[sample.sha256]

    @property
    def dropped_fraction(self) -> float:
        return len(self.dropped) / self.num_clips if self.num_clips else 0.0

    def buckets(self) -> dict[Size, dict[str, int]]:
        """Samples per bucket and split: {size: {"train": n, "validation": m}}."""
        table: dict[Size, dict[str, int]] = {}
        for sample in self.samples:
            row = table.setdefault(sample.size, {"train": 0, "validation": 0})
            row[sample.split] += 1
        return dict(sorted(table.items()))

    def counts(self) -> dict[str, int]:
        used = {sample.clip.id: sample.clip for sample in self.samples}
        return {
            "clips": self.num_clips,
            "used": len(used),
            "dropped": len(self.dropped),
            "samples": len(self.samples),
            "train": sum(sample.split == "train" for sample in self.samples),
            "validation": sum(sample.split == "validation" for sample in self.samples),
            "captions": sum(len(clip.captions) for clip in used.values()),
            "sources": len({clip.source for clip in used.values()}),
        }

    def enforce_max_dropped(self, config: DataConfig) -> None:
        """UserError where more clips are lost than `max_dropped` allows, or none is left to train on."""
        if not any(sample.split == "train" for sample in self.samples):
            raise UserError(f"{config.path}: no clip is left to train on. {self._why_dropped()}")
        if self.dropped_fraction > config.max_dropped:
            raise UserError(
                f"{config.path}: {len(self.dropped)} of {self.num_clips} clips are dropped "
                f"({self.dropped_fraction:.0%}), more than data.max_dropped = {config.max_dropped:g} allows. "
                f"{self._why_dropped()}\nMend or remove these clips, "
                "lower data.frames or raise data.fps if they are too short, or raise data.max_dropped."
            )

    def _why_dropped(self, shown: int = 5) -> str:
        if not self.dropped:
            return "None was dropped: all of them are in the validation split; lower data.validation."
        lines = [f"\n  {item.id}: {item.reason}" for item in self.dropped[:shown]]
        rest = len(self.dropped) - shown
        return "Dropped:" + "".join(lines) + (f"\n  and {rest} more" if rest > 0 else "")

    def table(self) -> list[str]:
        """The report as lines of text."""
        counts = self.counts()
        lines = [
            f"{counts['clips']} clips ({self.format}): {counts['used']} used, {counts['dropped']} dropped; "
            f"{counts['samples']} samples, {counts['train']} to train on, {counts['validation']} held out; "
            f"{counts['captions']} captions, {counts['sources']} source videos",
            f"{'frames x height x width':<24} {'train':>7} {'validation':>11}",
        ]
        lines += [f"{size!s:<24} {row['train']:>7} {row['validation']:>11}" for size, row in self.buckets().items()]
        if self.dropped:
            lines += ["dropped:", *(f"  {item.id}: {item.reason}" for item in self.dropped)]
        if self.notes:
            lines += ["noted:", *(f"  {item.id}: {item.reason}" for item in self.notes)]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; a page with thumbnails can be made from it alone."""
        return {
            "format": self.format,
            "counts": self.counts(),
            "dropped_fraction": self.dropped_fraction,
            "buckets": [{"size": list(size.tuple), **row} for size, row in self.buckets().items()],
            "samples": [self._plain(sample) for sample in self.samples],
            "dropped": [{"id": item.id, "reason": item.reason} for item in self.dropped],
            "notes": [{"id": item.id, "note": item.reason} for item in self.notes],
        }

    def _plain(self, sample: Sample) -> dict[str, Any]:
        info = self.info(sample)
        return {
            "index": sample.index,
            "clip": sample.clip.id,
            "path": str(sample.clip.video),
            "captions": list(sample.clip.captions),
            "source": sample.clip.source,
            "split": sample.split,
            "window": sample.window,
            "start_seconds": sample.start_seconds,
            "size": list(sample.size.tuple),
            "sha256": sample.sha256,
            "video": {
                "frames": info.num_frames,
                "fps": info.fps,
                "duration_seconds": info.duration_seconds,
                "first_seconds": info.first_seconds,
                "width": info.width,
                "height": info.height,
                "rotation": info.rotation,
                "codec": info.codec,
            },
        }


def inspect(
    config: DataConfig,
    cache: Cache | None = None,
    check_caption: CheckCaption | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> Inspection:
    """List, decode and sort a whole collection; nothing is dropped without a reason.

    With a `cache`, files that did not change are neither read nor decoded again (`verify` reads them all the same).
    """
    listing = read_listing(config)
    dropped, notes = list(listing.dropped), list(listing.notes)
    infos: dict[str, VideoInfo] = {}
    used: list[tuple[Clip, str, Size]] = []
    for done, clip in enumerate(listing.clips, start=1):
        try:
            clip, remarks = _captions_that_fit(clip, check_caption)
            sha256 = _sha256(clip, cache, verify)
            if sha256 not in infos:
                infos[sha256] = _probe(clip, sha256, cache)
            size = assign(infos[sha256], config, clip)
            if isinstance(size, str):
                raise BadVideo(size)
            used.append((clip, sha256, size))
            remarks += _remarks(infos[sha256], size, config)
            notes += [Dropped(clip.id, remark) for remark in remarks]
        except BadVideo as bad:
            dropped.append(Dropped(clip.id, str(bad)))
        if progress is not None:
            progress(done, len(listing.clips), clip.id)

    merged, doubles = _merge_sources(used)
    held_out = held_out_sources({clip.source for clip, _, _ in merged}, config.validation)
    samples: list[Sample] = []
    for clip, sha256, size in merged:
        split = "validation" if clip.source in held_out else "train"
        for window, start in enumerate(window_starts(infos[sha256], size, config, clip)):
            samples.append(Sample(len(samples), clip, window, start, size, split, sha256))
    return Inspection(
        format=listing.format,
        samples=tuple(samples),
        dropped=tuple(sorted(dropped, key=lambda item: item.id)),
        notes=tuple(sorted([*notes, *doubles], key=lambda item: item.id)),
        infos={sha256: infos[sha256] for _, sha256, _ in merged},
        num_clips=_count(listing),
    )


def held_out_sources(sources: Iterable[str], fraction: float) -> set[str]:
    """The sources of the validation split: those whose name hashes below `fraction` of the hashes' range.

    So a source stays on its side whatever other sources come or go, and no clip once trained on is ever held out
    later. Two edges bend that rule: from 8 sources on the smallest hash is held out where none would be, and the
    largest is trained on where all would be held out.
    """
    ranked = sorted((derive_seed("validation split", source), source) for source in set(sources))
    held_out = [source for number, source in ranked if number < fraction * 2**63]
    if fraction > 0 and not held_out and len(ranked) >= MIN_SOURCES_FOR_VALIDATION:
        held_out = [ranked[0][1]]
    return set(held_out[: max(0, len(ranked) - 1)])


def _count(listing: Listing) -> int:
    return len(listing.clips) + len(listing.dropped)


def _captions_that_fit(clip: Clip, check: CheckCaption | None) -> tuple[Clip, list[str]]:
    """The clip with the captions the text encoder takes, and a remark on those it does not. BadVideo: none is left."""
    if check is None:
        return clip, []
    faults = {caption: check(caption) for caption in clip.captions}
    good = tuple(caption for caption in clip.captions if faults[caption] is None)
    said = "; ".join(dict.fromkeys(fault for fault in faults.values() if fault is not None))
    if not good:
        raise BadVideo(f"no caption fits the text encoder: {said}")
    left_out = len(clip.captions) - len(good)
    return replace(clip, captions=good), [f"{left_out} of its captions left out: {said}"] if left_out else []


def _sha256(clip: Clip, cache: Cache | None, verify: bool) -> str:
    try:
        if not clip.video.is_file():
            raise BadVideo("not a regular file")
        return content_sha256(clip.video) if cache is None else cache.files.sha256(clip.video, verify)
    except OSError as error:
        raise BadVideo(f"cannot be read: {error.strerror or error}") from None


def _probe(clip: Clip, sha256: str, cache: Cache | None) -> VideoInfo:
    """`decode.probe`, remembered by content: also what was wrong with a bad file."""
    if cache is None:
        return probe(clip.video)
    key = f"{PROBE_VERSION}/{sha256}"
    known: dict[str, Any] | None = cache.probes.get(key)
    if known is None:
        try:
            known = probe(clip.video).to_plain()
        except BadVideo as bad:
            known = {"bad": str(bad)}
        cache.probes.put(key, known)
    if "bad" in known:
        raise BadVideo(known["bad"])
    return VideoInfo.from_plain(known)


def _remarks(info: VideoInfo, size: Size, config: DataConfig) -> list[str]:
    """What happens to a clip that its owner may not expect."""
    remarks = []
    longest = max(candidate.frames for candidate in config.sizes)
    if size.frames < longest:
        remarks.append(f"too short for the {longest}-frame bucket, used with {size.frames} frames")
    if info.fps and info.fps < config.fps * (1 - 1e-3):
        remarks.append(f"has {info.fps:.3g} fps, below data.fps = {config.fps:g}: frames are repeated")
    if size.height > info.height or size.width > info.width:
        remarks.append(f"{info.width}x{info.height} is enlarged to fill {size.width}x{size.height}")
    if info.ends_early:
        remarks.append(f"ends after {info.duration_seconds:.3g} of its {info.declared_seconds:.3g} s: it was cut short")
    if info.skipped_frames:
        remarks.append(f"its first {info.skipped_frames} frames are damaged and left out")
    return remarks


def _merge_sources(used: Sequence[tuple[Clip, str, Size]]) -> tuple[list[tuple[Clip, str, Size]], list[Dropped]]:
    """Clips of identical files belong to one source, and so do the sources they come from."""
    parent: dict[str, str] = {}

    def root(source: str) -> str:
        while parent.setdefault(source, source) != source:
            source = parent[source]
        return source

    first: dict[str, Clip] = {}
    doubles = []
    for clip, sha256, _ in used:
        same = first.setdefault(sha256, clip)
        if same.video != clip.video:
            doubles.append(Dropped(clip.id, f"the same file as {same.id}; they stay on one side of the split"))
        a, b = sorted((root(same.source), root(clip.source)))
        parent[b] = a
    return [(replace(clip, source=root(clip.source)), sha256, size) for clip, sha256, size in used], doubles
