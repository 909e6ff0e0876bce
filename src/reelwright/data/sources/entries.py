"""What every format's reader gives: entries, each a video's name and captions as a file says them, unchecked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelwright.types import UsageError

MAX_CAPTION_CHARACTERS = 10_000
MAX_TEXT_BYTES = 1 << 20  # of a text file that holds one caption
MAX_JSON_BYTES = 1 << 30  # of a JSON file, which is read whole; larger collections are .jsonl, .csv or .parquet
EMPTY = "its caption is empty"
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Dropped:
    """A clip, or a caption's name, that is not used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What one place says of one video, or of a part of it."""

    name: str  # a path, a file name or a stem
    captions: Any  # one caption or a list of them, not yet checked
    place: Path  # the file that says so; names are relative to its folder, else to the videos folder
    start_seconds: float | None = None
    end_seconds: float | None = None
    splits: tuple[str, ...] = ()


class Repeated(list[tuple[str, Any]]):
    """A JSON object with a name in it twice, as its pairs: a dict would silently keep the last of them."""


def clean_caption(value: Any) -> tuple[str, str | None]:
    """(caption with single spaces, None), or ("", why it cannot be used)."""
    if not isinstance(value, str):
        return "", f"its caption is not text but {json.dumps(value, default=str)[:40]}"
    caption = _BLANKS.sub(" ", value).strip(" \ufeff")
    if not caption:
        return "", EMPTY
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return "", f"its caption has {len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}"
    if not is_unicode(caption):
        return "", "its caption is not valid Unicode (bytes that are not UTF-8, or half a surrogate pair)"
    return caption, None


def is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_text(data: bytes) -> str:
    """UTF-8, with or without BOM, or UTF-16 with one. ValueError says where it is not."""
    marked_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not marked_utf16 and b"\x00" in data:
        raise ValueError("not UTF-8 text: it holds zero bytes; save it as UTF-8")
    try:
        return data.decode("utf-16" if marked_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if marked_utf16 else "UTF-8"
        raise ValueError(f"not {name} text (at byte {error.start}); save it as UTF-8") from None


def read_caption_file(path: Path) -> str:
    """The text of a small file. ValueError or OSError says why it cannot be read."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"it is larger than {MAX_TEXT_BYTES} bytes; a caption is a short text")
    return decode_text(data)


def load_json(place: Path) -> Any:
    """The value of a JSON file; an object that repeats a name is a `Repeated`. UsageError where it is none."""
    try:
        if place.stat().st_size > MAX_JSON_BYTES:
            raise UsageError(f"{place}: larger than {MAX_JSON_BYTES} bytes; save it as .jsonl, one object a line")
        return parse_json(place.read_bytes())
    except OSError as error:
        raise UsageError(f"{place}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from None


def parse_json(data: bytes) -> Any:
    """As `load_json`. ValueError says what is wrong."""
    text = decode_text(data)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply to be captions") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Repeated:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else Repeated(pairs)
