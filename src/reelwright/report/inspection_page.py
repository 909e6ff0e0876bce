"""What of a collection would be trained on, what not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelwright.report.page import Page

MAX_CLIPS_SHOWN = 2000


def write_inspection_page(inspection: Mapping[str, Any], thumbnails: Mapping[str, bytes], path: Path) -> None:
    """Write the page of an inspection; whatever it lacks is left out.

    inspection: {"counts": {name: number}, "buckets": [{...}], "clips": [{"id", "status", "reason", "caption",
    "frames", "fps", "width", "height", "split"}], "dropped": [the same, or only id and reason]}.
    thumbnails: clip id -> PNG bytes.
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
    if buckets := [bucket for bucket in inspection.get("buckets") or [] if isinstance(bucket, Mapping)]:
        page.section("Buckets", "Clips of one bucket have one size and share batches.")
        headers = list(dict.fromkeys(key for bucket in buckets for key in bucket))
        page.table(headers, [[_plain(bucket.get(key)) for key in headers] for bucket in buckets])
    if used:
        page.section("Used")
        _clip_table(page, used, thumbnails, ("split",))
    page.write(path)


def _clip_table(
    page: Page, clips: list[Mapping[str, Any]], thumbnails: Mapping[str, bytes], extra: tuple[str, ...]
) -> None:
    """One row a clip; a column that no clip fills is left out."""
    shown = clips[:MAX_CLIPS_SHOWN]
    rows = [
        {"": thumbnails.get(str(clip.get("id"))), "clip": clip.get("id")}
        | {key: _plain(clip.get(key)) for key in extra}
        | {"caption": _plain(clip.get("caption") or clip.get("captions")), "size": _size(clip)}
        | {key: clip.get(key) for key in ("frames", "fps")}
        for clip in shown
    ]
    headers = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    page.table(headers, [[row[name] for name in headers] for row in rows])
    if len(clips) > len(shown):
        page.text(f"{len(clips) - len(shown)} more are not shown.")


def _size(clip: Mapping[str, Any]) -> str | None:
    width, height = clip.get("width"), clip.get("height")
    return None if width is None or height is None else f"{width} x {height}"


def _plain(value: Any) -> Any:
    """A cell's value: lists as text."""
    return " · ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
