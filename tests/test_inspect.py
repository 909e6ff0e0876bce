"""`inspect`: what a recipe adds to the facts of a folder, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelwright.inspect import inspect_data, token_limit
from reelwright.prepare import prepare
from reelwright.recipe import Recipe
from reelwright.types import UsageError
from reelwright.video.write import write_video
from tiny_clip import save_tiny_clip


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Six clips of 8 frames, three of 4, one of 2, and one that is no video."""
    folder = tmp_path / "clips"
    captions = {}
    for number in range(10):
        frames = 8 if number < 6 else 4 if number < 9 else 2
        pixels = np.random.default_rng(number).integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
        write_video(folder / f"c{number}.mp4", pixels, 8.0)
        captions[f"c{number}.mp4"] = f"clip {number}"
    captions["c0.mp4"] = "many " * 90
    (folder / "bad.mp4").write_text("no video " * 20)
    (folder / "captions.json").write_text(json.dumps({**captions, "bad.mp4": "bad"}))
    return folder


def _quiet(*_: Any) -> None:
    pass


def test_a_recipe_says_micro_batches_and_the_text_encoders_length(clips, write_recipe, tmp_path):
    settings = ("data.buckets=[[8, 32, 32], [4, 32, 32]]", "train.batch_size=8", "train.micro_batch=2")
    recipe = write_recipe(*settings, data=clips, cache=tmp_path / "cache")
    found = inspect_data(recipe, [], _quiet)
    rows = {tuple(row["size"]): row for row in found.to_json()["buckets"]}
    assert rows[8, 32, 32]["micro_batch"] == 2 and rows[4, 32, 32]["micro_batch"] == 4
    assert "micro_batch" in "\n".join(found.table())
    notes = {note.id: note.reason for note in found.notes if "tokens" in note.reason}
    assert notes == {"c0.mp4": "a caption of at least 91 tokens; the text encoder reads 16: its end is not seen"}
    assert not (tmp_path / "cache").exists(), "nothing is written"
    squared = inspect_data(recipe, ["train.micro_batch_power=2", "train.micro_batch=1"], _quiet)
    assert {row["micro_batch"] for row in squared.to_json()["buckets"]} == {1, 4}


def test_a_fitted_tokenizer_counts_exactly(clips, write_recipe, tmp_path):
    path = write_recipe("data.max_dropped=0.5", data=clips, cache=tmp_path / "cache")
    prepare(Recipe.load(path))
    limit = token_limit(Recipe.load(path))
    assert limit is not None and not limit.at_least and limit.most == 16
    assert limit.count(["many many"])[0] >= 3


def test_clips_own_tokenizer_counts_without_its_weights(clips, write_recipe, tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    for weights in Path(clip).glob("*.safetensors"):
        weights.unlink()
    recipe = Recipe.load(write_recipe(f"text={{type: clip, model: {clip}, length: 10}}", data=clips))
    limit = token_limit(recipe)
    assert limit is not None and (limit.at_least, limit.most) == (False, 10)
    (short, longer) = limit.count(["a cat", "a cat and a cat"])
    assert 4 <= short < longer


def test_a_folder_alone_is_measured_by_clip(clips):
    found = inspect_data(clips, ["frames=8"], _quiet)
    assert found.captions["too_long"] == 1
    assert any("a caption of at least 92 tokens; CLIP's text encoder reads 77" in note.reason for note in found.notes)


def test_a_codec_that_cannot_be_loaded_does_not_stop_it(clips, write_recipe, tmp_path):
    codec = f"codec={{type: autoencoder_kl, model: {tmp_path / 'absent'}}}"
    found = inspect_data(write_recipe(codec, data=clips), [], _quiet)
    assert found.notes[0].id == "codec autoencoder_kl" and "no micro-batches are shown" in found.notes[0].reason
    assert found.counts()["used"] == 6


def test_the_page_shows_what_is_used_and_what_is_not(clips, tmp_path):
    seen: list[tuple[str, int, int]] = []
    page = tmp_path / "page.html"
    inspect_data(clips, ["frames=8", "scene_cuts=200"], lambda *told: seen.append(told), page)
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"<img ", text)) == 10, "the clips that are too short too"
    assert "too short" in text and "looks like a text file" in text and "no cuts" in text
    assert text.count("many ") < 60 and " ...<" in text, "a long caption is shortened"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text) and "<script" not in text
    assert seen[-1] == ("thumbnails", 10, 10)


@pytest.mark.parametrize("window", ["spread", "uniform"])
def test_every_window_rule_has_pictures_on_the_page(clips, tmp_path, window):
    inspect_data(clips, ["frames=8", f"window={window}"], _quiet, tmp_path / "page.html")
    assert len(re.findall(r"<img ", (tmp_path / "page.html").read_text(encoding="utf-8"))) == 10


def test_neither_a_folder_nor_a_recipe(tmp_path):
    with pytest.raises(UsageError, match="neither a folder of captioned clips nor a recipe"):
        inspect_data(tmp_path / "absent", [], _quiet)
