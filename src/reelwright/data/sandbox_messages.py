"""What a pool of decoding children and its owner say to each other: JSON and raw bytes, never code.

A message is a header, JSON, and a body of raw bytes. The owner trusts nothing a child answers, as the file it decodes
may have taken it over: every size is checked before memory is set aside for it, every value before it is used.
"""

from __future__ import annotations

import base64
import json
import math
import socket
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelwright.data.decode import VideoInfo
from reelwright.types import FileSlice, Size

_HEADER = struct.Struct(">IQ")  # bytes of JSON, bytes of the body
MAX_HEAD_BYTES = 64 << 20  # a day of timestamps at 60 fps is two thirds of it
MAX_TEXT = 2000  # letters of a reason
_TYPES = {"bool": bool, "int": int, "float": float, "str": str}
_PLAIN_FIELDS = {field.name: _TYPES[field.type] for field in fields(VideoInfo) if field.type in _TYPES}
# A child's timestamps come as the body: what is compressed can grow without bound.
_NO_TIMESTAMPS = base64.b64encode(zlib.compress(b"")).decode()


class Breach(Exception):
    """A message that follows no rule of these."""


def send(connection: socket.socket, head: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
    """Write one message; the socket's own time-out holds for all of it. OSError where the other side is gone."""
    text = json.dumps(head).encode("ascii")
    connection.sendall(_HEADER.pack(len(text), len(body)) + text)
    if len(body):
        connection.sendall(body)


def receive(
    connection: socket.socket, max_body_bytes: int = 0, deadline: float | None = None
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Read one message: (head, body as bytes).

    EOFError where the other side has closed, TimeoutError once `time.monotonic()` passes the deadline, Breach where
    it is no message of ours.
    """
    head_bytes, body_bytes = _HEADER.unpack(_read(connection, _HEADER.size, deadline).data)
    if head_bytes > MAX_HEAD_BYTES or body_bytes > max_body_bytes:
        raise Breach(f"a message of {head_bytes} + {body_bytes} bytes")
    try:
        head = json.loads(_read(connection, head_bytes, deadline).tobytes().decode("ascii"))
    except (ValueError, RecursionError):
        raise Breach("a message that is not JSON") from None
    if not isinstance(head, dict):
        raise Breach("a message that is no JSON object")
    return head, _read(connection, body_bytes, deadline)


def _read(connection: socket.socket, num_bytes: int, deadline: float | None) -> NDArray[np.uint8]:
    data = np.empty(num_bytes, dtype=np.uint8)
    view, at = data.data, 0
    while at < num_bytes:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        count = connection.recv_into(view[at:])
        if count == 0:
            raise EOFError
        at += count
    return data


def pack(value: Any) -> Any:
    """An argument of a job as JSON. TypeError for anything but numbers, text, files, sizes and infos."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return {"path": str(value.absolute())}  # a child works in another folder
    if isinstance(value, FileSlice):
        return {"slice": [str(value.container.absolute()), value.offset, value.num_bytes, value.name]}
    if isinstance(value, Size):
        return {"size": value.tuple}
    if isinstance(value, VideoInfo):
        return {"info": value.to_plain()}
    raise TypeError(f"{value!r}: a decoding child takes numbers, text, files, sizes and infos")


def unpack(value: Any) -> Any:
    """Inverse of `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, plain),) = value.items()
    if kind == "slice":
        container, offset, num_bytes, name = plain
        return FileSlice(Path(container), offset, num_bytes, name)
    return {"path": Path, "size": lambda extents: Size(*extents), "info": VideoInfo.from_plain}[kind](plain)


def pack_result(value: Any) -> tuple[dict[str, Any], bytes | memoryview]:
    """What a job gave, as a message: an info (its timestamps are the body), pictures (the body), text, or numbers."""
    if isinstance(value, VideoInfo):
        timestamps = value.timestamps.astype("<f8").tobytes()
        return {"info": {**value.to_plain(), "timestamps": _NO_TIMESTAMPS}}, timestamps
    if isinstance(value, np.ndarray):
        return {"pixels": value.shape}, np.ascontiguousarray(value, dtype=np.uint8).data.cast("B")
    if isinstance(value, str):
        return {"text": value}, b""
    return {"numbers": [float(number) for number in value]}, b""


def info_of(head: Mapping[str, Any], body: NDArray[np.uint8]) -> VideoInfo:
    """The info of an answer. Breach where it could not be that of any video."""
    plain = head.get("info")
    if not isinstance(plain, dict) or not _is_harmless(plain) or not len(body) or len(body) % 8:
        raise Breach("no info")
    timestamps = body.view("<f8").astype(np.float64)
    if not np.isfinite(timestamps).all() or (np.diff(timestamps) < 0).any():
        raise Breach("an info whose timestamps do not ascend")
    try:
        info = replace(VideoInfo.from_plain({**plain, "timestamps": _NO_TIMESTAMPS}), timestamps=timestamps)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise Breach("an info with other fields") from None
    if any(type(getattr(info, name)) is not kind for name, kind in _PLAIN_FIELDS.items()):
        raise Breach("an info with a field of another type")
    if min(info.width, info.height) < 1:
        raise Breach("an info without a size")
    return info


def pixels_of(head: Mapping[str, Any], body: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The pictures of an answer, uint8 `f h w c` of the size asked for, else Breach."""
    shape = (*size.tuple, 3)
    if head.get("pixels") != list(shape) or len(body) != math.prod(shape):
        raise Breach("pictures of another size")
    return body.reshape(shape)


def numbers_of(head: Mapping[str, Any]) -> tuple[float, ...]:
    """The numbers of an answer, all finite, else Breach."""
    numbers = head.get("numbers")
    if not isinstance(numbers, list) or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise Breach("no numbers")
    return tuple(map(float, numbers))


def printable(text: Any) -> str:
    """A child's words as one may print them; Breach where they are none."""
    if not isinstance(text, str) or not text:
        raise Breach("no words")
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_TEXT])


def _is_harmless(values: Mapping[str, Any] | Sequence[Any]) -> bool:
    """Whether all numbers are finite and all texts printable, whatever they are nested in."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, str) and not value.isprintable():
            return False
        if isinstance(value, (dict, list)) and not _is_harmless(value):
            return False
    return True
