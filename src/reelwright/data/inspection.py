"""What of a collection is used, what is dropped and why, how it falls into buckets, and which part is held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reelwright.data.auto_buckets import Fits, auto_buckets
from reelwright.data.buckets import assign, frames_in, scene_spans, window_places
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import VideoInfo
from reelwright.data.probing import Progress, Seen, look_at
from reelwright.data.sandbox import Decoders
from reelwright.data.sources import Dropped, Listing, read_listing
from reelwright.data.split import held_out_sources, true_sources
from reelwright.types import Clip, Size, UsageError, UserError


@dataclass(frozen=True)
class TokenLimit:
    """How many tokens captions have for a text encoder, and how many it reads."""

    count: Callable[[list[str]], list[int]]
    most: int
    reader: str  # who counts so and reads so many
    at_least: bool = False  # whether `count` only says how many there are at least


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
    end_seconds: float | None = None  # spread: its frames lie evenly up to here; None: they follow `data.fps`
    span: tuple[float, float] = (0.0, math.inf)  # seconds it may not leave: of its clip, or of its scene


@dataclass(frozen=True)
class Inspection:
    """The plan of a collection: `samples` are what `prepare` encodes."""

    config: DataConfig  # with `buckets: auto` settled
    format: str
    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[Dropped, ...]  # used, but worth knowing: a smaller bucket, repeated frames, a doubled file ...
    infos: dict[str, VideoInfo]  # by sha256 of the file, of every clip that decodes
    num_clips: int  # used and dropped together
    captions: dict[str, int] = field(default_factory=dict)  # how many there are, are missing, empty, doubled, too long
    cuts: dict[str, tuple[float, ...]] = field(default_factory=dict)  # by sha256, where cuts were looked for
    decoded: tuple[tuple[Clip, str], ...] = ()  # (clip, sha256) of those dropped although they decode
    micro_batches: Mapping[Size, int] = field(default_factory=dict)  # of a recipe: samples at once, by bucket

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
        for size, row in table.items():
            if size in self.micro_batches:
                row["micro_batch"] = self.micro_batches[size]
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
        counts, captions = self.counts(), self.captions
        lines = [
            f"{counts['clips']} clips ({self.format}): {counts['used']} used, {counts['dropped']} dropped; "
            f"{counts['samples']} samples, {counts['train']} to train on, {counts['validation']} held out; "
            f"{counts['captions']} captions, {counts['sources']} source videos",
        ]
        if captions:
            said = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in captions.items())
            lines.append(f"captions: {said}")
        rows = self.buckets()
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines.append(f"{'frames x height x width':<24} " + " ".join(f"{name:>11}" for name in columns))
        lines += [
            f"{size!s:<24} " + " ".join(f"{row.get(name, ''):>11}" for name in columns) for size, row in rows.items()
        ]
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
            "captions": self.captions,
            "dropped_fraction": self.dropped_fraction,
            "buckets": [{"size": list(size.tuple), **row} for size, row in self.buckets().items()],
            "samples": [self._plain(sample) for sample in self.samples],
            "dropped": [{"id": item.id, "reason": item.reason} for item in self.dropped],
            "notes": [{"id": item.id, "note": item.reason} for item in self.notes],
        }

    def _plain(self, sample: Sample) -> dict[str, Any]:
        return {
            "index": sample.index,
            "clip": sample.clip.id,
            "path": str(sample.clip.video),
            "captions": list(sample.clip.captions),
            "source": sample.clip.source,
            "split": sample.split,
            "window": sample.window,
            "start_seconds": sample.start_seconds,
            "end_seconds": sample.end_seconds,
            "size": list(sample.size.tuple),
            "sha256": sample.sha256,
            "video": video_facts(self.infos[sample.sha256]),
            **({"cuts": list(self.cuts[sample.sha256])} if sample.sha256 in self.cuts else {}),
        }


def video_facts(info: VideoInfo) -> dict[str, Any]:
    """What decoding a file showed, as plain values."""
    return {
        "frames": info.num_frames,
        "fps": info.fps,
        "duration_seconds": info.duration_seconds,
        "first_seconds": info.first_seconds,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "codec": info.codec,
    }


def inspect(
    config: DataConfig,
    cache: Cache | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    decoders: Decoders | None = None,
    fits: Fits | None = None,
    tokens: TokenLimit | None = None,
) -> Inspection:
    """List, decode and sort a whole collection; nothing is dropped without a reason.

    With a `cache`, files that did not change are neither read nor decoded again (`verify` reads them all the same).
    `decoders` do the decoding (None: some are started for it). `fits` says which sizes `buckets: auto` may choose;
    `tokens` how long captions are for the text encoder.
    """
    listing = read_listing(config)
    dropped, notes = list(listing.dropped), list(listing.notes)
    good: list[Seen] = []
    unused: list[Seen] = []
    for seen in look_at(listing.clips, config, cache, decoders, progress, verify):
        if isinstance(seen, Dropped):
            dropped.append(seen)
        elif config.flagged == "drop" and (flag := _flag(seen.info)):
            dropped.append(Dropped(seen.clip.id, f"{flag} (data.flagged = drop)"))
            unused.append(seen)
        else:
            good.append(seen)
    if config.buckets == "auto":
        config = _settled(config, good, fits)

    used: list[tuple[Seen, Size]] = []
    for seen in good:
        size = assign(seen.info, config, seen.clip, seen.cuts or ())
        if isinstance(size, str):
            dropped.append(Dropped(seen.clip.id, size))
            unused.append(seen)
        else:
            used.append((seen, size))
            notes += [Dropped(seen.clip.id, remark) for remark in _remarks(seen.info, size, config)]
    clips = [seen for seen, _ in used]
    sources, doubles = true_sources(clips, config.near_duplicates)
    coverage, too_long = _caption_coverage(listing, clips, tokens)
    return Inspection(
        config=config,
        format=listing.format,
        samples=_samples(used, sources, config),
        dropped=tuple(sorted(dropped, key=lambda item: item.id)),
        notes=tuple(sorted([*notes, *doubles, *too_long], key=lambda item: item.id)),
        infos={seen.sha256: seen.info for seen in [*clips, *unused]},
        num_clips=len(listing.clips) + len(listing.dropped),
        captions=coverage,
        cuts={seen.sha256: seen.cuts for seen in [*clips, *unused] if seen.cuts is not None},
        decoded=tuple((seen.clip, seen.sha256) for seen in unused),
    )


def _settled(config: DataConfig, seen: Sequence[Seen], fits: Fits | None) -> DataConfig:
    """The settings with buckets derived from what is there."""

    def room(clip: Seen) -> int:
        spans = scene_spans(clip.info, clip.clip, clip.cuts or ())
        return max((frames_in(clip.info, span, config) for span in spans), default=0)

    try:
        found = auto_buckets(((room(clip), clip.info.height, clip.info.width) for clip in seen), config, fits)
    except ValueError as error:
        raise UsageError(f"data.{error}") from None
    return config.model_copy(update={"buckets": found})


def _samples(used: Sequence[tuple[Seen, Size]], sources: Sequence[str], config: DataConfig) -> tuple[Sample, ...]:
    held_out = held_out_sources(sources, config.validation)
    samples: list[Sample] = []
    for (seen, size), source in zip(used, sources, strict=True):
        clip = replace(seen.clip, source=source) if source != seen.clip.source else seen.clip
        split = "validation" if source in held_out else "train"
        for window, place in enumerate(window_places(seen.info, size, config, clip, seen.cuts or ())):
            start, end, span = place
            samples.append(Sample(len(samples), clip, window, start, size, split, seen.sha256, end, span))
    return tuple(samples)


def _flag(info: VideoInfo) -> str | None:
    """Why a clip shows nothing that could be learned; None for any other."""
    if info.looks.is_black:
        return "black from first to last frame"
    if info.num_frames > 1 and info.looks.is_frozen:
        return "the same picture from first to last frame"
    return None


def _remarks(info: VideoInfo, size: Size, config: DataConfig) -> list[str]:
    """What happens to a clip that its owner may not expect."""
    remarks = list(info.remarks)
    if flag := _flag(info):
        remarks.append(flag)
    longest = max(candidate.frames for candidate in config.sizes)
    if size.frames < longest:
        remarks.append(f"too short for the {longest}-frame bucket, used with {size.frames} frames")
    if config.window != "spread" and info.fps and info.fps < config.fps * (1 - 1e-3):
        remarks.append(f"has {info.fps:.3g} fps, below data.fps = {config.fps:g}: frames are repeated")
    if size.height > info.height or size.width > info.width:
        remarks.append(f"{info.width}x{info.height} is enlarged to fill {size.width}x{size.height}")
    if info.ends_early:
        remarks.append(f"ends after {info.duration_seconds:.3g} of its {info.declared_seconds:.3g} s: it was cut short")
    if info.skipped_frames:
        remarks.append(f"its first {info.skipped_frames} frames are damaged and left out")
    return remarks


def _caption_coverage(
    listing: Listing, clips: Sequence[Seen], tokens: TokenLimit | None
) -> tuple[dict[str, int], list[Dropped]]:
    """(how many captions there are and how many are no good, notes on clips whose captions are too long)."""
    captions = [caption for seen in clips for caption in seen.clip.captions]
    distinct = list(dict.fromkeys(captions))
    coverage = {
        "given": len(captions),
        "distinct": len(distinct),
        "missing": listing.missing,
        "empty": listing.empty,
    }
    if tokens is None or not distinct:
        return coverage, []
    lengths = dict(zip(distinct, tokens.count(distinct), strict=True))
    coverage["too_long"] = sum(lengths[caption] > tokens.most for caption in captions)
    notes = []
    for seen in clips:
        longest = max(lengths[caption] for caption in seen.clip.captions)
        if longest > tokens.most:
            said = f"at least {longest}" if tokens.at_least else str(longest)
            remark = f"a caption of {said} tokens; {tokens.reader} reads {tokens.most}: its end is not seen"
            notes.append(Dropped(seen.clip.id, remark))
    return coverage, notes
