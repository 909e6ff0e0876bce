"""An HTML page in one file that needs no network: pictures, plots and videos are inside it.

Everything written into it is escaped, and its content policy forbids scripts and every outside address, so that a
caption taken from a stranger's data set can do nothing.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
LONGEST_WORD = 24  # letters of a cell that stay on one line
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --faint: #667085; --line: #e1e5ec;
        --accent: #2f6fe4; --good: #17834f; --bad: #c4392f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11141a; --card: #191d25; --ink: #e8ebf1; --faint: #98a2b3; --line: #2b313c;
          --accent: #7aa8ff; --good: #4cc38a; --bad: #ff7a70; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 44px 24px 80px; }
header { margin-bottom: 28px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; letter-spacing: -0.01em; margin: 44px 0 12px; }
p { margin: 8px 0; max-width: 75ch; overflow-wrap: anywhere; white-space: pre-line; }
header p, .faint, figcaption { color: var(--faint); }
.card, .figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.figure { flex: 1 1 150px; padding: 14px 18px; }
.figure b { display: block; font-size: 24px; line-height: 1.3; font-weight: 650; letter-spacing: -0.02em;
            font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figure span { color: var(--faint); font-size: 13px; }
.verdict { border-left: 4px solid var(--accent); padding: 12px 18px; margin: 20px 0; }
.verdict.good { border-left-color: var(--good); } .verdict.bad { border-left-color: var(--bad); }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--faint); font-weight: 600; font-size: 12.5px; }
th, td { padding: 9px 12px; border-bottom: 1px solid var(--line); vertical-align: middle; }
th:first-child, td:first-child { padding-left: 18px; } th:last-child, td:last-child { padding-right: 18px; }
thead th { vertical-align: bottom; line-height: 1.35; }
tr:last-child td { border-bottom: 0; }
td { max-width: 420px; }
td.long { overflow-wrap: anywhere; min-width: 18ch; }
td.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
th.number { text-align: right; }
td img { display: block; height: 56px; width: auto; max-width: none; border-radius: 5px; }
figure { margin: 14px 0; padding: 16px; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px; margin: 14px 0; }
.videos figure { margin: 0; padding: 0; overflow: hidden; }
.videos video, .videos img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
figcaption { font-size: 13px; line-height: 1.4; padding: 9px 12px; overflow-wrap: anywhere; }
figure > svg + figcaption, figure > img + figcaption { padding: 10px 0 0; }
.videos figure > img + figcaption { padding: 9px 12px; }
details { margin: 14px 0; } summary { cursor: pointer; padding: 12px 18px; font-weight: 600; }
pre { margin: 0; padding: 14px 18px; overflow-x: auto; border-top: 1px solid var(--line);
      font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
"""


class Page:
    """A page built from top to bottom: each call adds a part, `write` saves it."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts: list[str] = []
        self._subtitle = subtitle

    def section(self, title: str, text: str = "") -> None:
        """Start a section; what follows stands under it."""
        self._parts.append(f"<h2>{_escape(title)}</h2>")
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{_escape(text)}</p>")

    def verdict(self, text: str, good: bool | None = None) -> None:
        """The sentence that matters, marked as good or bad news or as neither."""
        tone = {True: " good", False: " bad", None: ""}[good]
        self._parts.append(f'<div class="card verdict{tone}">{_escape(text)}</div>')

    def figures(self, figures: Mapping[str, str | int | float]) -> None:
        """A row of key figures: what it is -> its value."""
        cards = "".join(
            f'<div class="figure"><b>{_escape(_shown(value))}</b><span>{_escape(name)}</span></div>'
            for name, value in figures.items()
        )
        self._parts.append(f'<div class="figures">{cards}</div>')

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Numbers stand to the right; bytes are a PNG thumbnail; None is an empty cell."""
        if uneven := [len(row) for row in rows if len(row) != len(headers)]:
            raise ValueError(f"a row of {uneven[0]} cells under {len(headers)} headers")
        numeric = [
            any(_is_number(row[column]) for row in rows)
            and all(_is_number(row[column]) or row[column] is None for row in rows)
            for column in range(len(headers))
        ]
        marks = [' class="number"' if is_number else "" for is_number in numeric]
        head = "".join(f"<th{mark}>{_escape(header)}</th>" for mark, header in zip(marks, headers, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{mark or _long(value)}>{_cell(value)}</td>" for mark, value in zip(marks, row, strict=True))
            + "</tr>\n"
            for row in rows
        )
        self._parts.append(
            f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        )

    def image(self, image: bytes | str, caption: str = "") -> None:
        """A picture: PNG bytes, or SVG text as `report.plots` makes it (trusted: it is part of the page)."""
        if isinstance(image, bytes):
            content = f'<img src="{_data_uri(image, "image/png")}" alt="{_escape(caption)}">'
        else:
            content = _inline_svg(image)
        self._parts.append(f'<figure class="card">{content}{_caption(caption)}</figure>')

    def videos(self, videos: Sequence[tuple[Path, str]]) -> None:
        """A grid of (mp4, webm or gif file, caption), all playing in a loop without sound."""
        cells = "".join(
            f'<figure class="card">{_media(Path(path), caption)}{_caption(caption)}</figure>\n'
            for path, caption in videos
        )
        self._parts.append(f'<div class="videos">{cells}</div>')

    def code(self, text: str, title: str, opened: bool = False) -> None:
        """Text as it is, such as a recipe, folded under its title."""
        state = " open" if opened else ""
        self._parts.append(
            f'<details class="card"{state}><summary>{_escape(title)}</summary><pre>{_escape(text)}</pre></details>'
        )

    def html(self) -> str:
        subtitle = f"<p>{_escape(self._subtitle)}</p>" if self._subtitle else ""
        parts = "\n".join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{_escape(self.title)}</h1>{subtitle}</header>\n{parts}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Save the page, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(self.html().encode("utf-8", "replace"))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True).replace("\0", "�")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _long(value: object) -> str:
    """The mark of sentences, which need room, and of long names, which may be broken so that their table fits."""
    if not isinstance(value, str):
        return ""
    is_name = any(len(word) > LONGEST_WORD for word in value.split())
    return ' class="long"' if is_name or len(value) > 2 * LONGEST_WORD else ""


def _cell(value: object) -> str:
    if isinstance(value, bytes):
        return f'<img src="{_data_uri(value, "image/png")}" alt="">'
    return _escape(_shown(value))


def _caption(caption: str) -> str:
    return f"<figcaption>{_escape(caption)}</figcaption>" if caption else ""


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _media(path: Path, caption: str) -> str:
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise ValueError(f"{path}: a page shows {', '.join(MEDIA_TYPES)}, not '{path.suffix}'")
    uri = _data_uri(path.read_bytes(), media_type)
    if media_type.startswith("image/"):
        return f'<img src="{uri}" alt="{_escape(caption)}">'
    return f'<video src="{uri}" autoplay loop muted playsinline></video>'


def _inline_svg(svg: str) -> str:
    """The <svg> element alone: HTML needs neither the XML prologue nor name spaces, which are outside addresses."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)
