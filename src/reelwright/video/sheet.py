"""Contact sheets: videos laid out as rows of frames in one PNG."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reelwright.video.write import as_frames

PAPER, INK, FAINT = (255, 255, 255), (24, 26, 31), (110, 116, 128)
MARGIN, GAP, FRAME_GAP, LINE = 20, 22, 2, 21
FONT_SIZE = 15
MAX_LABEL_LINES = 2


@dataclass(frozen=True)
class _Block:
    """A label over strips of frames; each strip may have a name at its left."""

    label: str
    strips: list[tuple[str, Image.Image]]


def contact_sheet(
    rows: Sequence[Any], labels: Sequence[str], path: Path, frames_per_row: int = 8, frame_height: int = 128
) -> None:
    """A PNG with one row a video (uint8 `f h w c`, sizes may differ) under its label, frames evenly picked.

    Frames come out about `frame_height` pixels high: small ones enlarged by a whole factor, so that every pixel is
    seen as it is, large ones reduced by area. A label takes at most two lines.
    """
    _check(rows, labels)
    blocks = [
        _Block(label, [("", _strip(as_frames(frames), frames_per_row, frame_height))])
        for frames, label in zip(rows, labels, strict=True)
    ]
    _save(_lay_out(blocks, columns=1), path)


def grid_sheet(
    originals: Sequence[Any],
    generated: Sequence[Any],
    labels: Sequence[str],
    path: Path,
    frames_per_row: int = 8,
    frame_height: int = 96,
    names: tuple[str, str] = ("original", "generated"),
    columns: int = 2,
) -> None:
    """A PNG of pairs: each original's row above its counterpart's, under a label such as "a red ball, 21.3 dB"."""
    _check(originals, labels)
    _check(generated, labels)
    blocks = [
        _Block(
            label,
            [
                (name, _strip(as_frames(frames), frames_per_row, frame_height))
                for name, frames in zip(names, pair, strict=True)
            ],
        )
        for label, *pair in zip(labels, originals, generated, strict=True)
    ]
    _save(_lay_out(blocks, columns), path)


def _check(rows: Sequence[Any], labels: Sequence[str]) -> None:
    if len(rows) == 0 or len(rows) != len(labels):
        raise ValueError(f"{len(rows)} videos with {len(labels)} labels: a sheet needs at least one, and a label each")


def _strip(frames: NDArray[np.uint8], count: int, frame_height: int) -> Image.Image:
    """`count` frames at even distances, first and last among them, side by side."""
    if count < 1:
        raise ValueError(f"frames_per_row = {count}: it must be at least 1")
    picked = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    height, width = frames.shape[1:3]
    if height < frame_height:
        factor = max(1, round(frame_height / height))
        size, method = (width * factor, height * factor), Image.Resampling.NEAREST
    else:
        size = (max(1, round(width * frame_height / height)), frame_height)
        method = Image.Resampling.BOX
    strip = Image.new("RGB", (len(picked) * (size[0] + FRAME_GAP) - FRAME_GAP, size[1]), PAPER)
    for column, index in enumerate(picked):
        strip.paste(Image.fromarray(frames[index]).resize(size, method), (column * (size[0] + FRAME_GAP), 0))
    return strip


def _lay_out(blocks: list[_Block], columns: int) -> Image.Image:
    """Blocks from left to right, then down."""
    font = _font()
    columns = min(columns, len(blocks))
    names = [name for block in blocks for name, _ in block.strips if name]
    indent = max((int(font.getlength(_printable(name))) + 12 for name in names), default=0)
    block_width = indent + max(240, *(strip.width for block in blocks for _, strip in block.strips))
    wrapped = [_wrap(block.label, block_width, font) for block in blocks]
    heights = [
        len(lines) * LINE + 4 + sum(strip.height + FRAME_GAP for _, strip in block.strips)
        for lines, block in zip(wrapped, blocks, strict=True)
    ]
    row_heights = [max(heights[start : start + columns]) for start in range(0, len(blocks), columns)]
    width = 2 * MARGIN + columns * (block_width + GAP) - GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(row_heights) + GAP * (len(row_heights) - 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (block, lines) in enumerate(zip(blocks, wrapped, strict=True)):
        row, column = divmod(index, columns)
        x = MARGIN + column * (block_width + GAP)
        y = MARGIN + sum(row_heights[:row]) + GAP * row
        for line in lines:
            draw.text((x, y), line, font=font, fill=INK)
            y += LINE
        y += 4
        for name, strip in block.strips:
            draw.text((x, y + strip.height // 2), _printable(name), font=font, fill=FAINT, anchor="lm")
            sheet.paste(strip, (x + indent, y))
            y += strip.height + FRAME_GAP
    return sheet


def _wrap(label: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The label in at most MAX_LABEL_LINES lines of `width` pixels; what does not fit ends in an ellipsis."""
    words = _printable(label[:2000]).split(" ")
    lines: list[str] = []
    while words and len(lines) < MAX_LABEL_LINES:
        count = len(words)
        last = len(lines) == MAX_LABEL_LINES - 1
        while count > 1 and font.getlength(" ".join(words[:count])) > width:
            count -= 1
        line, rest = " ".join(words[:count]), words[count:]
        if font.getlength(line) > width or (last and rest):
            while line and font.getlength(line + "…") > width:
                line = line[:-1]
            line += "…"
        lines.append(line)
        words = rest
    return lines


def _printable(text: str) -> str:
    """One line of valid Unicode: white space collapsed, control characters and broken halves replaced."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(valid.split()))


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans out of matplotlib: Pillow's own font knows Latin letters alone."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def _save(sheet: Image.Image, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sheet.save(temporary, format="PNG", optimize=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
