"""Manifests: what of a collection is used, a line a clip, in a form that other programs and `data.captions` read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from reelwright.durable import replace_file
from reelwright.types import Clip, FileSlice, UserError


def write_clip_manifest(clips: Iterable[Clip], path: Path, split: str = "train") -> int:
    """Write `train.manifest.jsonl` or the like, whole or not at all; gives back the number of lines.

    A line is {"video", "captions", "start_seconds", "end_seconds", "split", "source", "path"}: the video relative to
    the videos folder, the times null where the whole video is meant, the path absolute (of a tar shard: the shard's,
    with "offset" and "num_bytes"). A file that says the same already is left alone. UserError where it cannot be
    written.
    """
    lines = [json.dumps(_line(clip, split), ensure_ascii=False) + "\n" for clip in clips]
    text = "".join(lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != text.encode("utf-8", "backslashreplace"):
            replace_file(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return len(lines)


def _line(clip: Clip, split: str) -> dict[str, object]:
    whole = clip.start_seconds is None and clip.end_seconds is None
    line: dict[str, object] = {
        "video": clip.id if whole else clip.id.rpartition("@")[0],
        "captions": list(clip.captions),
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "split": split,
        "source": clip.source,
    }
    if isinstance(clip.video, FileSlice):
        shard = str(clip.video.container.absolute())
        return line | {"path": shard, "offset": clip.video.offset, "num_bytes": clip.video.num_bytes}
    return line | {"path": str(clip.video.absolute())}
