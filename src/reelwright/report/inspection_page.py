"""What of a collection would be trained on, what not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelwright.report.page import Page

MAX_CLIPS_SHOWN = 2000
MAX_CAPTION_SHOWN = 240  # letters
BY = "\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}"  # 64 x 48 stays on one line


def write_inspection_page(inspection: Mapping[str, Any], thumbnails: Mapping[str, bytes], path: Path) -> None:
    """Write the page of an inspection; whatever it lacks is left out.

    inspection: {"counts": {name: number}, "captions": {name: number}, "buckets": [{...}], "clips": [{"id", "status",
    "reason", "caption", "frames", "fps", "width", "height", "cuts", "split", "noted"}], "dropped": [the same, or only
    id and reason], "notes": [{"id", "note"}]}. thumbnails: clip id -> PNG bytes.
    """
    clips = [clip for clip in inspection.get("clips") or [] if isinstance(clip, Mapping)]
    dropped = [clip for clip in inspection.get("dropped") or [] if isinstance(clip, Mapping)]
    named = {clip.get("id") for clip in dropped}
    dropped += [clip for clip in clips if clip.get("status") == "dropped" and clip.get("id") not in named]
    out = {clip.get("id") for clip in dropped}
    used = [clip for clip in clips if clip.get("id") not in out]

    page = Page("Inspection", str(inspection.get("path") or ""))
    page.figures(inspection.get("counts") or {"used": len(used), "dropped": len(dropped)})
    if dropped:
        page.verdict(f"{len(dropped)} of {len(used) + len(dropped)} clips would not be trained on.", good=False)
    else:
        page.verdict(f"All {len(used)} clips would be trained on.", good=True)
    if dropped:
        page.section("Dropped, and why")
        _clip_table(page, dropped, thumbnails, ("reason",))
    if captions := inspection.get("captions"):
        page.section("Captions", "Of the clips that are used; missing and empty ones are those of clips that are not.")
        page.table([_words(name) for name in captions], [list(captions.values())])
    if buckets := [bucket for bucket in inspection.get("buckets") or [] if isinstance(bucket, Mapping)]:
        page.section("Buckets", "Clips of one bucket have one size and share batches.")
        headers = list(dict.fromkeys(key for bucket in buckets for key in bucket))
        rows = [[_cell(key, bucket.get(key)) for key in headers] for bucket in buckets]
        page.table([_words(key) for key in headers], rows)
    shown = {clip.get("id") for clip in used}
    if others := [note for note in inspection.get("notes") or [] if note.get("id") not in shown]:
        page.section("Noted of the collection")
        page.table(["", "note"], [[note.get("id"), note.get("note")] for note in others])
    if used:
        page.section("Used")
        _clip_table(page, used, thumbnails, ("split", "noted"))
    page.write(path)


def _clip_table(
    page: Page, clips: list[Mapping[str, Any]], thumbnails: Mapping[str, bytes], extra: tuple[str, ...]
) -> None:
    """One row a clip; a column that no clip fills is left out."""
    shown = clips[:MAX_CLIPS_SHOWN]
    rows = [
        {"clip": clip.get("id")}
        | {key: _plain(clip.get(key)) for key in extra}
        | {"": thumbnails.get(str(clip.get("id")))}
        | {"caption": _shortened(_plain(clip.get("caption") or clip.get("captions"))), "video": _video(clip)}
        for clip in shown
    ]
    headers = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    page.table(headers, [[row[name] for name in headers] for row in rows])
    if len(clips) > len(shown):
        page.text(f"{len(clips) - len(shown)} more are not shown.")


def _video(clip: Mapping[str, Any]) -> str:
    """Size, length and cuts of a clip, as far as they are known."""
    facts = []
    if clip.get("width") is not None and clip.get("height") is not None:
        facts.append(f"{clip['width']}{BY}{clip['height']}")
    if clip.get("frames") is not None:
        facts.append(f"{clip['frames']} frames")
    if clip.get("fps") is not None:
        facts.append(f"{clip['fps']:.4g} fps")
    if (cuts := clip.get("cuts")) is not None:
        facts.append("cuts at " + ", ".join(f"{cut:.2f}" for cut in cuts) + " s" if cuts else "no cuts")
    return ", ".join(facts)


def _shortened(text: Any) -> Any:
    return text[:MAX_CAPTION_SHOWN] + " ..." if isinstance(text, str) and len(text) > MAX_CAPTION_SHOWN else text


def _cell(key: str, value: Any) -> Any:
    """A size as frames x height x width, never broken; anything else as `_plain`."""
    return BY.join(map(str, value)) if key == "size" and isinstance(value, (list, tuple)) else _plain(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> Any:
    """A cell's value: lists as text."""
    return " · ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
