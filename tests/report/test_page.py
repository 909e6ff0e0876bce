import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from reelwright.report.page import Page
from reelwright.report.plots import loss_curve

EVIL = "<script>alert(1)</script> \"'> <img src=x onerror=alert(1)> & \0 \ud800 </pre></style> http"
VOID = {"meta", "img", "br", "link", "input"}
LOADING = {"src", "href", "xlink:href", "srcset", "poster", "action", "data"}


class Inspector(HTMLParser):
    """Collects the tags, what they load and the text; fails where tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.shown = ""
        self.stack: list[str] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in LOADING]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def full_page(tmp_path: Path, text: str) -> Page:
    page = Page(text, text)
    page.section(text, text)
    page.verdict(text, good=False)
    page.figures({text: text, "count": 3, "share": 0.123456})
    page.table([text, "n", "picture"], [[text, 1, png()], [None, 2.5, None]])
    page.image(png(), text)
    page.image(loss_curve([(1, 1.0), (2, 0.5)]), text)
    (tmp_path / "a.mp4").write_bytes(b"mp4 bytes")
    (tmp_path / "a.gif").write_bytes(b"gif bytes")
    page.videos([(tmp_path / "a.mp4", text), (tmp_path / "a.gif", text)])
    page.code(text, text)
    return page


def test_a_page_loads_nothing_from_outside(tmp_path: Path) -> None:
    full_page(tmp_path, "plain").write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", page)
    loaded = Inspector(page).loaded
    assert len(loaded) > 4
    assert all(address.startswith(("data:", "#")) for address in loaded)
    assert "default-src 'none'" in page


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    full_page(tmp_path, EVIL).write(tmp_path / "evil.html")
    full_page(tmp_path, "plain").write(tmp_path / "plain.html")
    evil = Inspector((tmp_path / "evil.html").read_text(encoding="utf-8"))
    plain = Inspector((tmp_path / "plain.html").read_text(encoding="utf-8"))
    assert evil.tags == plain.tags and "script" not in evil.tags
    assert evil.handlers == []
    assert evil.shown.count("<script>alert(1)</script>") == plain.shown.count("plain")


def test_what_is_embedded_is_whole(tmp_path: Path) -> None:
    page = Inspector(full_page(tmp_path, "x").html())
    contents = [base64.b64decode(address.split(",")[1]) for address in page.loaded if address.startswith("data:")]
    assert contents == [png(), png(), b"mp4 bytes", b"gif bytes"]
    assert page.tags.count("video") == 1, "a gif is an image"


def test_numbers_are_short_and_to_the_right(tmp_path: Path) -> None:
    page = Page("x")
    page.table(["name", "value"], [["a", 0.123456789], ["b", None], ["c", 7]])
    assert page.html().count('<td class="number">') == 3
    assert ">0.1235<" in page.html() and ">7<" in page.html()


def test_mistakes_are_named(tmp_path: Path) -> None:
    page = Page("x")
    with pytest.raises(ValueError, match="1 cells under 2 headers"):
        page.table(["a", "b"], [["only one"]])
    (tmp_path / "x.exe").touch()
    with pytest.raises(ValueError, match=r"x\.exe"):
        page.videos([(tmp_path / "x.exe", "")])
