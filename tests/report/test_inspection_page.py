import re
import shutil
from pathlib import Path

import pytest

from reelwright.report.inspection_page import write_inspection_page

CLIP = {"caption": "a <red> ball", "frames": 16, "fps": 8.0, "width": 64, "height": 48}
INSPECTION = {
    "counts": {"clips": 4, "used": 2, "dropped": 2},
    "buckets": [{"size": "16x64x64", "clips": 1}, {"size": "16x64x96", "clips": 1, "note": "small"}],
    "clips": [
        {"id": "a.mp4", "status": "used", "split": "train"} | CLIP,
        {"id": "b.mp4", "status": "used", "split": "validation"} | CLIP,
        {"id": "c.mp4", "status": "dropped", "reason": "too <short>"},
    ],
    "dropped": [{"id": "d.mp4", "reason": "truncated"}],
}


def page_of(inspection: dict, thumbnails: dict, folder: Path) -> str:
    write_inspection_page(inspection, thumbnails, folder / "x.html")
    return (folder / "x.html").read_text(encoding="utf-8")


def test_counts_then_dropped_then_used(tmp_path: Path) -> None:
    page = page_of(INSPECTION, {"a.mp4": b"png"}, tmp_path)
    places = [
        page.index(part) for part in ("<span>dropped</span>", "Dropped, and why", "truncated", "16x64x96", "a.mp4")
    ]
    assert places == sorted(places)
    assert "2 of 4 clips would not be trained on" in page
    assert "too &lt;short&gt;" in page and "a &lt;red&gt; ball" in page
    assert "64\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}48" in page
    assert page.count("<img") == 1
    for name in "abcd":
        assert len(re.findall(rf">{name}\.mp4<", page)) == 1, "every clip once"


def test_missing_keys_are_taken(tmp_path: Path) -> None:
    assert "All 0 clips" in page_of({}, {}, tmp_path)
    page = page_of({"clips": [{"id": "a"}, {}, "odd"], "dropped": None, "buckets": [{}], "counts": None}, {}, tmp_path)
    assert "All 2 clips" in page


def test_a_large_collection_says_what_is_not_shown(tmp_path: Path) -> None:
    clips = [{"id": f"{index}.mp4", "status": "used"} for index in range(2500)]
    assert "500 more are not shown" in page_of({"clips": clips}, {}, tmp_path)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_no_table_is_clipped_at_1200_pixels(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    clip = {
        "caption": "a person in a red coat walks along the river " * 3, "frames": 450, "fps": 29.97, "width": 1920,
        "height": 1080, "cuts": [1.2, 3.4, 5.6], "noted": ["its sound is left out", "interlaced"],
    }  # fmt: skip
    inspection = {
        "clips": [{"id": f"some/folders/{'a' * 80}{n}.mp4", "status": "used", "split": "validation"} | clip
                  for n in range(3)],
        "captions": dict.fromkeys(
            ("clips", "missing", "empty", "different", "shortest_words", "median_words", "longest_words",
             "mean_tokens", "longer_than_the_text_encoder_takes", "not_in_ascii"), 12),
        "buckets": [{"size": [16, 512, 512], "clips": 4, "samples": 40, "latents": [4, 64, 64], "tokens": 4096,
                     "micro_batch": 8, "batches_an_epoch": 12, "enlarged": 0, "held_out": 2, "note": "small"}],
        "dropped": [{"id": "b" * 90, "reason": "too short: 12 frames at 8 fps, the smallest bucket needs 16"}],
    }  # fmt: skip
    page_of(inspection, {}, tmp_path)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto((tmp_path / "x.html").as_uri())
        boxes = page.eval_on_selector_all(".scroll", "all => all.map(box => [box.clientWidth, box.scrollWidth])")
        words = page.eval_on_selector_all("td", "all => all.map(cell => [cell.innerText, cell.clientHeight])")
        browser.close()
    assert len(boxes) == 4 and all(shown >= needed for shown, needed in boxes), boxes
    assert {height for text, height in words if text == "validation"} and len(words) > 30
