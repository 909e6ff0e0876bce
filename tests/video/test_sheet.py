from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reelwright.video.sheet import contact_sheet, grid_sheet

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat_clip(*colours: tuple[int, int, int], height: int = 64, width: int = 64) -> np.ndarray:
    return np.stack([np.full((height, width, 3), colour, dtype=np.uint8) for colour in colours])


def pixels_of(path: Path, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(Image.open(path)) == colour).all(-1).sum())


def test_first_and_last_frame_are_shown_and_small_frames_enlarged_whole(tmp_path: Path) -> None:
    clip = flat_clip(RED, *[(9, 9, 9)] * 14, GREEN)
    contact_sheet([clip], ["a caption"], tmp_path / "x.png", frames_per_row=4)
    assert pixels_of(tmp_path / "x.png", RED) == pixels_of(tmp_path / "x.png", GREEN) == 128 * 128
    assert pixels_of(tmp_path / "x.png", (9, 9, 9)) == 2 * 128 * 128


def test_every_pixel_of_a_small_frame_is_seen(tmp_path: Path) -> None:
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    clip = np.stack([board, np.zeros_like(board), np.zeros_like(board)], axis=-1)[None]
    contact_sheet([clip], [""], tmp_path / "x.png")
    assert pixels_of(tmp_path / "x.png", RED) == 128 * 128 // 2


def test_large_frames_are_reduced_and_sizes_may_differ(tmp_path: Path) -> None:
    clips = [flat_clip(RED, height=512, width=256), flat_clip(BLUE, BLUE, height=64, width=96)]
    contact_sheet(clips, ["tall", "wide"], tmp_path / "x.png")
    assert pixels_of(tmp_path / "x.png", RED) == 128 * 64
    assert pixels_of(tmp_path / "x.png", BLUE) == 2 * 128 * 192


def test_labels_are_drawn_trimmed_and_any_text_is_taken(tmp_path: Path) -> None:
    labels = ["", "猫 🎬 العربية Привет\n\t\0\ud800\u202e", "word " * 5000, "x" * 100_000, "one line"]
    contact_sheet([flat_clip(RED, RED)] * len(labels), labels, tmp_path / "x.png")
    sheet = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert (sheet[:, 20:276] < 100).any(), "labels leave ink"
    assert (sheet[:, -20:] == 255).all(), "no label runs over the margin"


def test_pairs_stand_above_each_other(tmp_path: Path) -> None:
    originals, generated = [flat_clip(RED)] * 3, [flat_clip(BLUE)] * 3
    grid_sheet(originals, generated, [f"clip {index}, 21.3 dB" for index in range(3)], tmp_path / "x.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    red, blue = (sheet == RED).all(-1), (sheet == BLUE).all(-1)
    assert red.sum() == blue.sum() == 3 * 128 * 128  # 64 pixels twice as large
    column = int(np.flatnonzero(red.any(0))[0])
    starts = [np.flatnonzero(np.diff(mask[:, column].astype(int)) == 1) for mask in (red, blue)]
    assert len(starts[0]) == 2 and (starts[0] < starts[1]).all(), "two rows of pairs, the original on top"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 videos with 2 labels"):
        contact_sheet([flat_clip(RED)], ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="frames_per_row = 0"):
        contact_sheet([flat_clip(RED)], ["a"], tmp_path / "x.png", frames_per_row=0)
    assert list(tmp_path.iterdir()) == []
