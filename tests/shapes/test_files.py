from __future__ import annotations

import json

import numpy as np
import pytest

from reelwright.shapes import files
from reelwright.shapes.files import (
    captions_file,
    read_coverage,
    read_scenes,
    read_track,
    training_prompts,
    write_collection,
)
from reelwright.shapes.renderer import render
from reelwright.shapes.world import COLOURS
from reelwright.types import Size, UsageError

SIZE, FPS = Size(4, 16, 16), 8.0


def save(path, video, fps):
    with path.open("wb") as file:
        np.save(file, video)


def write(out, clips=5, seed=0, track="s1", write_video=save, progress=None):
    return write_collection(out, clips, seed, track, SIZE, FPS, write_video, progress)


def test_a_collection_holds_videos_captions_and_scenes(tmp_path):
    seen = []
    assert write(tmp_path / "new" / "set", progress=lambda done, total: seen.append((done, total))) == 5
    out = tmp_path / "new" / "set"
    expected = training_prompts(5, 0, "s1", duration_seconds=0.5)
    assert read_scenes(out) == {f"{i:05}.mp4": prompt for i, prompt in enumerate(expected)}
    captions = json.loads((out / "captions.json").read_text())
    assert captions == {f"{i:05}.mp4": prompt.caption for i, prompt in enumerate(expected)}
    assert sorted(p.name for p in (out / "videos").iterdir()) == sorted(captions)
    assert (np.load(out / "videos" / "00003.mp4") == render(expected[3].scene, SIZE, FPS)).all()
    assert seen == [(i, 5) for i in range(1, 6)]


def test_the_same_call_again_does_nothing_or_completes(tmp_path):
    write(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    assert write(tmp_path) == 0
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "videos" / "00002.mp4").unlink()
    (tmp_path / "captions.json").unlink()
    assert write(tmp_path) == 1
    assert {p: content for p, (_, content) in before.items()} == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize("writers", [1, 3])
def test_a_kill_in_the_middle_leaves_no_half_clip(tmp_path, monkeypatch, writers):
    monkeypatch.setattr(files, "MOST_WRITERS", writers)
    monkeypatch.setattr(files.os, "cpu_count", lambda: writers)

    def killed(path, video, fps):
        path.write_bytes(b"half")
        if path.name.endswith("00002.mp4"):
            raise KeyboardInterrupt
        save(path, video, fps)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, write_video=killed)
    assert not (tmp_path / "videos" / "00002.mp4").exists() and not (tmp_path / "captions.json").exists()
    whole = {path.name for path in (tmp_path / "videos").glob("[0-9]*.mp4")}
    assert whole >= {"00000.mp4", "00001.mp4"}
    assert write(tmp_path) == 5 - len(whole)
    assert len(list((tmp_path / "videos").iterdir())) == 5


def test_other_collections_and_foreign_files_are_not_touched(tmp_path):
    write(tmp_path / "ours")
    with pytest.raises(UsageError, match=r"seed 1 \(there: 0\)"):
        write(tmp_path / "ours", seed=1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no shapes collection"):
        write(foreign)
    with pytest.raises(UsageError, match="is a file"):
        write(foreign / "notes.txt")
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("track", ["s2", "s3", "graded"])
def test_the_other_tracks_come_back_as_they_were_written(tmp_path, track):
    size = Size(12, 16, 16)
    write_collection(tmp_path, 6, 3, track, size, FPS, save)
    expected = training_prompts(6, 3, track, duration_seconds=1.5)
    assert list(read_scenes(tmp_path).values()) == expected and read_track(tmp_path) == track
    assert write_collection(tmp_path, 6, 3, track, size, FPS, save) == 0


def test_a_collection_of_one_object_is_written_as_it_always_was(tmp_path):
    """Keys that came with other tracks are left out, so that an older folder is still this very collection."""
    write(tmp_path)
    clip = json.loads((tmp_path / "scenes.json").read_text())["clips"]["00000.mp4"]
    assert set(clip["scene"]["objects"][0]) == {"factors", "start", "velocity", "radius", "growth", "angle", "spin"}
    assert set(clip["stated"][0]) == {"shape", "colour", "motion", "speed", "size", "region"}
    assert set(json.loads((tmp_path / "scenes.json").read_text())["settings"]) == {
        "clips", "seed", "track", "size", "fps"
    }  # fmt: skip


def test_the_named_clips_have_their_names_and_metadata(tmp_path):
    assert write(tmp_path, clips=3, track="d2") == 3
    assert json.loads((tmp_path / "metadata.json").read_text()) == {
        "video_001": "a green circle moving from left to right",
        "video_002": "a blue square expanding",
        "video_003": "a red line rotating",
    }
    assert sorted(p.name for p in (tmp_path / "videos").iterdir()) == [f"video_00{i}.mp4" for i in (1, 2, 3)]
    assert not (tmp_path / "captions.json").exists() and captions_file("s1") == "captions.json"
    assert [p.stated[0].shape for p in read_scenes(tmp_path).values()] == ["circle", "square", "line"]


def test_a_coverage_is_part_of_the_collection(tmp_path):
    write_collection(tmp_path, 4, 0, "s1", SIZE, FPS, save, coverage=0.25)
    assert read_coverage(tmp_path) == 0.25
    assert list(read_scenes(tmp_path).values()) == training_prompts(4, 0, "s1", 0.5, coverage=0.25)
    with pytest.raises(UsageError, match=r"holds another collection"):
        write(tmp_path, clips=4)
    write(tmp_path / "usual")
    assert read_coverage(tmp_path / "usual") is None


def test_a_clip_may_have_several_captions(tmp_path):
    """The first is the one it has alone; all are of its scene, and they state different things."""
    write(tmp_path / "one", clips=12)
    write_collection(tmp_path / "more", 12, 0, "s1", SIZE, FPS, save, captions=5)
    one, more = (json.loads((tmp_path / name / "captions.json").read_text()) for name in ("one", "more"))
    assert {name: said[0] for name, said in more.items()} == one
    scenes = {name: prompt.scene.objects[0].factors for name, prompt in read_scenes(tmp_path / "more").items()}
    for name, said in more.items():
        assert 1 <= len(said) == len(set(said)) <= 5
        words = {word for caption in said for word in caption.split()}
        assert not words & (set(COLOURS) - {scenes[name].colour}), f"{name}: {words}"
    assert sum(map(len, more.values())) > 40
    with pytest.raises(UsageError, match=r"holds another collection: captions None \(there: 5\)"):
        write(tmp_path / "more", clips=12)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UsageError, match="coverage = 0.95"):
        write_collection(tmp_path, 4, 0, "s1", SIZE, FPS, save, coverage=0.95)
    with pytest.raises(UsageError, match="tracks of one object"):
        write_collection(tmp_path, 4, 0, "d2", SIZE, FPS, save, coverage=0.5)
    with pytest.raises(UsageError, match="frames = 4: clips of track s3 need at least 12"):
        write(tmp_path, track="s3")
    with pytest.raises(UsageError, match="captions = 0: a clip has at least one"):
        write_collection(tmp_path, 4, 0, "s1", SIZE, FPS, save, captions=0)
    with pytest.raises(UsageError, match="captions = 2: the clips of track d2 have one each"):
        write_collection(tmp_path, 3, 0, "d2", SIZE, FPS, save, captions=2)
    with pytest.raises(UsageError, match="clips = 0"):
        write(tmp_path, clips=0)
    with pytest.raises(UsageError, match="s1-hard"):
        write(tmp_path, track="hard")
    with pytest.raises(UsageError, match="not the scenes file"):
        read_scenes(tmp_path)
