import re
from pathlib import Path

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
    assert "too &lt;short&gt;" in page and "a &lt;red&gt; ball" in page and "64 x 48" in page
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
