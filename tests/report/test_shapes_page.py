from __future__ import annotations

import io

from PIL import Image

from reelwright.report.shapes_page import write_shapes_page

COUNTS = {("circle", "circle"): 5, ("circle", None): 2, ("square", "circle"): 1}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_page_has_table_matrices_and_worst_and_needs_no_network(tmp_path):
    path = write_shapes_page(
        tmp_path / "shapes.html", "run <1>", "s2", "on two cores", (["row", "joint"], [["model", "12.0%"]]),
        {"in_distribution": {"shape": COUNTS}, "swaps, held_out_pairs": {"shape": COUNTS, "motion": COUNTS}},
        picture(), 17,
    )  # fmt: skip
    page = path.read_text()
    for words in ("run &lt;1&gt;", "Track s2.", "on two cores", "12.0%", "Stated and read: in distribution",
                  "Stated and read: swaps, held out pairs", "The worst 17"):  # fmt: skip
        assert words in page
    assert page.count("<svg") == 3 and "data:image/png" in page and 'src="http' not in page


def test_without_wrong_videos_there_is_no_sheet(tmp_path):
    path = write_shapes_page(tmp_path / "p.html", "r", "s1", "c", (["row"], [["model"]]), {}, None, 0)
    assert "worst" not in path.read_text()
