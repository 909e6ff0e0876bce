"""One set of videos beside real ones: rows, intervals, controls, and what each metric refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quality_videos import make_videos

from reelwright.generate import Compute
from reelwright.loading import load_model
from reelwright.metrics.clip import ClipModel
from reelwright.metrics.frechet import frechet_distance
from reelwright.metrics.statistics import mean_interval, possible_range
from reelwright.quality import (
    Measured,
    Subjects,
    VideoSet,
    build_features,
    load_clip,
    measure_clip,
    measure_frechet,
    measure_speed,
    measure_temporal,
    measures,
)
from reelwright.quality.measures import derangement
from reelwright.recipe import SamplingConfig
from reelwright.types import Size, UsageError
from tiny_clip import save_tiny_clip

CPU = torch.device("cpu")
ONE_STEP = SamplingConfig(steps=1, guidance=1.0)


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    captions = [f"caption number {n}" for n in range(8)]
    made, real = (VideoSet(n, make_videos(8, s), captions) for n, s in (("model", 0), ("real clips", 1)))
    return Subjects(made, real, "held-out captions", Size(4, 24, 24), 8.0)


def values(measured: Measured, metric: str) -> dict[str, float]:
    return {row["row"]: row["value"] for row in measured.rows if row["metric"] == metric}


def test_no_caption_keeps_its_place():
    for count in (2, 3, 50):
        captions = [f"caption {n}" for n in range(count)]
        order = derangement(captions, seed=1)
        assert sorted(order) == list(range(count)) and all(here != there for here, there in enumerate(order))
    assert derangement(captions, 1) == derangement(captions, 1) != derangement(captions, 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "captions", ["aabb", "abcabc", "aabbc", "abbbcccd", "aaabbbccc", "aab", "aaaaabc", "aaaa", "a"]
)
def test_a_repeated_caption_gets_other_words_wherever_there_are_enough(captions, seed):
    order = derangement(captions, seed)
    assert sorted(order) == list(range(len(captions)))
    same = sum(captions[there] == captions[here] for here, there in enumerate(order))
    most = max(captions.count(letter) for letter in captions)
    assert same == max(0, 2 * most - len(captions)), "as few as can be"


def test_videos_of_one_caption_have_no_shuffled_row(tiny_clip):
    clip = load_clip(str(tiny_clip), CPU)
    for captions, shuffled in ((["x"] * 4, 0), (["x", "x", "x", "y"], 2), (["x", "x", "y", "y"], 4)):
        alone = Subjects(VideoSet("videos", make_videos(4, 0), captions), None, "captions", Size(4, 24, 24), 8.0)
        measured = measure_clip(alone, clip, 0, quiet)
        rows = {row["row"]: row["n"] for row in measured.rows if row["metric"] == "CLIP cosine"}
        assert rows == {"videos": 4, **({"videos, shuffled captions": shuffled} if shuffled else {})}
        told = [note for note in measured.notes if f"{4 - shuffled} of 4 find none with other words" in note]
        assert len(told) == (shuffled < 4)


def test_clip_rows_stand_beside_one_another(subjects, tiny_clip):
    clip = load_clip(str(tiny_clip), CPU)
    measured = measure_clip(subjects, clip, 0, quiet)
    cosines = values(measured, "CLIP cosine")
    assert list(cosines) == ["model", "model, shuffled captions", "real clips", "real clips, shuffled captions"]
    videos = measured.per_video["clip, model"]
    assert [v["caption"] for v in videos] == subjects.made.captions
    own = [v["cosine"] for v in videos]
    row = next(r for r in measured.rows if r["row"] == "model" and r["metric"] == "CLIP cosine")
    assert (row["low"], row["high"]) == pytest.approx(mean_interval(own)) and row["n"] == 8
    assert cosines["model"] == pytest.approx(np.mean(own)) and clip.sha256[:12] in row["network"]
    scores = values(measured, "CLIPScore")
    assert scores["model"] == pytest.approx(np.mean([2.5 * max(c, 0) for c in own]))
    gains = values(measured, "CLIP cosine, matched minus shuffled")
    assert gains["model"] == pytest.approx(cosines["model"] - cosines["model, shuffled captions"])
    (_, headers, cells) = measured.tables[0]
    assert all(len(row) == len(headers) for row in cells) and [row[0] for row in cells] == list(cosines)
    text, frames = clip.text_features(subjects.made.captions), clip.frame_features(subjects.made.videos[3])
    assert own[3] == pytest.approx(float((frames @ text[3]).mean()), abs=1e-6)
    for v in videos:
        other = text[subjects.made.captions.index(v["shuffled_caption"])]
        assert v["shuffled_caption"] != v["caption"]
        assert v["shuffled_cosine"] == pytest.approx(
            float((clip.frame_features(subjects.made.videos[videos.index(v)]) @ other).mean()), abs=1e-6
        )


def test_no_figure_reaches_beyond_what_it_can_be(subjects, tiny_clip):
    """Two videos: Student's t for one degree of freedom is 12.7 standard errors wide."""
    made, real = (VideoSet(one.name, one.videos[:2], one.captions[:2]) for one in subjects.sets)
    two = Subjects(made, real, subjects.split, subjects.size, subjects.fps)
    clip = load_clip(str(tiny_clip), CPU)
    measured = [measure_clip(two, clip, 0, quiet), measure_temporal(two, clip, CPU, 0, quiet)]
    rows = [row for one in measured for row in one.rows if row["low"] is not None]
    cut = 0
    for row in rows:
        least, most = (0, 1) if row["metric"] == "clips that move" else possible_range(row["metric"])
        assert least <= row["low"] <= row["value"] + 1e-9 and row["value"] - 1e-9 <= row["high"] <= most, row
        cut += least == row["low"] or most == row["high"]
    assert cut >= 5, "some of them would"
    assert "inf" not in str([one.tables for one in measured])


def test_cut_captions_are_told(tiny_clip):
    long = ["x" * 100, "short"]
    videos = VideoSet("videos", make_videos(2, 0), long)
    alone = Subjects(videos, None, "captions of a folder", Size(4, 24, 24), 8.0)
    measured = measure_clip(alone, load_clip(str(tiny_clip), CPU), 0, quiet)
    assert any(note.startswith("1 captions have more than CLIP's 77 tokens") for note in measured.notes)
    assert {row["row"] for row in measured.rows} == {"videos", "videos, shuffled captions"}


@pytest.fixture(scope="module")
def few(subjects) -> Subjects:
    made, real = (VideoSet(one.name, one.videos[:3], one.captions[:3]) for one in subjects.sets)
    return Subjects(made, real, subjects.split, subjects.size, subjects.fps)


def test_no_control_wins_the_table(few, tiny_clip):
    for clip, name in ((None, "SSIM of luma"), (load_clip(str(tiny_clip), CPU), "CLIP cosine")):
        measured = measure_temporal(few, clip, CPU, 0, quiet)
        degree = values(measured, "dynamic degree (pixels a frame at 256)")
        consistency = values(measured, f"frame consistency ({name})")
        error = values(measured, "warping error")
        assert list(degree) == ["model", "model, frozen", "model, noise", "real clips"]
        assert degree["model, frozen"] < 1e-3 < degree["model"], "frozen loses what it does not show"
        assert consistency["model, frozen"] == pytest.approx(1, abs=1e-5) and error["model, frozen"] < 1e-9
        assert consistency["model, noise"] < consistency["model"]
        assert error["model, noise"] > error["model"]
        assert values(measured, "clips that move")["model, frozen"] == 0
        (_, headers, cells) = measured.tables[0]
        assert all(len(row) == len(headers) for row in cells)
        frozen = dict(zip(headers, next(row for row in cells if row[0] == "model, frozen"), strict=True))
        assert frozen["change not explained by motion"] == "-", "nothing changes, so nothing is explained"


def test_features_are_computed_once(few, tiny_clip, monkeypatch):
    clip = load_clip(str(tiny_clip), CPU)
    seen = []
    features = ClipModel.frame_features
    monkeypatch.setattr(ClipModel, "frame_features", lambda self, v: seen.append(len(v)) or features(self, v))
    fresh = Subjects(few.made, few.real, few.split, few.size, few.fps)
    measure_clip(fresh, clip, 0, quiet)
    measure_temporal(fresh, clip, CPU, 0, quiet)
    assert len(seen) == 3 + 3 + 2 * 3, "made, real, and the two controls"


def test_the_dynamic_degree_can_be_had_alone(few):
    measured = measure_temporal(few, None, CPU, 0, quiet, whole=False)
    assert {row["metric"] for row in measured.rows} == {"dynamic degree (pixels a frame at 256)", "clips that move"}


def test_one_frame_has_no_motion(subjects):
    single = Subjects(subjects.made, None, "", Size(1, 24, 24), 8.0)
    with pytest.raises(UsageError, match="need at least two"):
        measure_temporal(single, None, CPU, 0, quiet)


def test_frechet_rows_and_their_warning(subjects, tiny_clip):
    network = build_features(f"clip:{tiny_clip}", CPU)
    measured = measure_frechet(subjects, network, 0, quiet)
    model = [row for row in measured.rows if row["row"] == "model"]
    floor = [row for row in measured.rows if row["row"] == "real clips against real clips"]
    assert [row["n"] for row in model] == [8, 4, 2] and [row["n"] for row in floor] == [4, 2]
    real, made = (network.features(one.videos) for one in (subjects.real, subjects.made) if one)
    assert model[0]["value"] == pytest.approx(frechet_distance(real, made), rel=1e-6)
    (_, headers, cells) = measured.tables[0]
    assert all(len(row) == len(headers) and "too few" in row[-1] for row in cells)
    assert any(network.sha256[:12] in note and f"{network.frames} frames" in note for note in measured.notes)


def test_equal_sets_have_no_distance(subjects, tiny_clip):
    same = Subjects(subjects.made, subjects.made, "", subjects.size, subjects.fps)
    measured = measure_frechet(same, build_features(f"clip:{tiny_clip}", CPU), 0, quiet)
    assert measured.rows[0]["value"] == pytest.approx(0, abs=1e-6)


def test_the_speed_leaves_the_warm_up_out(trained_run, monkeypatch):
    clock = iter([-100.0, 0.0, 2.0, 10.0, 11.0, 20.0, 24.0])
    monkeypatch.setattr(measures.time, "perf_counter", lambda: next(clock))
    made = []
    monkeypatch.setattr(measures, "generate_videos", lambda *a, **k: made.append(a[1]) or [])
    model = load_model(str(trained_run))
    measured = measure_speed(model, ONE_STEP, Compute(CPU), quiet, repeats=3)
    (row,) = measured.rows
    assert len(made) == 4 and (row["value"], row["low"], row["high"]) == (4.0, 2.0, 8.0), "8 frames in 2, 1 and 4 s"
    (_, headers, (cells,)) = measured.tables[0]
    assert len(cells) == len(headers) and "1" in cells[headers.index("sampler, steps")]
    assert row["split"].startswith("8x32x32 on cpu ("), "a speed belongs to its machine"
