"""What a set of videos is made of: a model's held-out clips, a folder's videos, real clips beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from quality_videos import make_videos

from reelwright.generate import Compute
from reelwright.loading import load_model
from reelwright.quality import folder_subjects, model_subjects, real_clips
from reelwright.quality.subjects import draw
from reelwright.recipe import SamplingConfig
from reelwright.types import Size, UsageError
from reelwright.video.write import write_video

CPU = torch.device("cpu")
ONE_STEP = SamplingConfig(steps=1, guidance=1.0)


def quiet(*_: object) -> None:
    pass


def test_a_draw_is_random_keyed_and_keeps_the_order():
    names = [f"clip {n}" for n in range(200)]
    few, more = draw(names, 20, 0, str), draw(names, 50, 0, str)
    assert few == sorted(few, key=names.index) and set(few) < set(more) and len(few) == 20
    assert few != names[:20] and draw(names, 20, 1, str) != few
    assert draw(names[::-1], 20, 0, str) == few[::-1], "whatever the order they are found in"
    assert draw(names, 999, 0, str) == names
    places = [names.index(name) for seed in range(40) for name in draw(names, 20, seed, str)]
    assert abs(np.mean(places) - 99.5) < 8 and len(set(places)) > 190, "every clip is as likely as any other"


def test_a_model_is_measured_on_its_held_out_clips(trained_run):
    model = load_model(str(trained_run))
    found = model_subjects(model, ONE_STEP, Compute(CPU), 5, 0, quiet)
    assert found.real is not None and found.split == "held-out captions"
    assert found.made.captions == found.real.captions and 2 <= len(found.made.videos) <= 5
    assert {v.shape for one in found.sets for v in one.videos} == {(8, 32, 32, 3)}
    again = model_subjects(model, ONE_STEP, Compute(CPU), 2, 0, quiet)
    videos = dict(zip(found.made.captions, found.made.videos, strict=True))
    assert len(again.made.videos) == 2, "the same videos, whatever else is measured beside them"
    for caption, video in zip(again.made.captions, again.made.videos, strict=True):
        assert np.array_equal(videos[caption], video)


def test_real_clips_are_not_always_the_first(trained_run):
    recipe = load_model(str(trained_run)).recipe
    every, _ = real_clips(recipe, "train", 99, 0, quiet)
    ids = [sample.clip.id for sample, _ in every]
    drawn = [[sample.clip.id for sample, _ in real_clips(recipe, "train", 3, seed, quiet)[0]] for seed in range(3)]
    assert len(ids) == 20 and drawn[0] == [s.clip.id for s, _ in real_clips(recipe, "train", 3, 0, quiet)[0]]
    assert len({tuple(chosen) for chosen in drawn}) == 3 and all(set(chosen) <= set(ids) for chosen in drawn)


def write_folder(folder: Path, videos: list[np.ndarray], fps: float = 8.0, captions: bool = True) -> Path:
    named = {f"{n}.mp4": video for n, video in enumerate(videos)}
    for name, video in named.items():
        write_video(folder / name, video, fps)
    if captions:
        (folder / "captions.json").write_text(json.dumps({name: f"clip {name}" for name in named}))
    return folder


def test_a_folder_is_read_at_its_own_size_and_real_clips_at_the_same(tmp_path):
    made = write_folder(tmp_path / "made", [*make_videos(3, 0, 6, 48), *make_videos(1, 1, 5, 96)])
    real = write_folder(tmp_path / "real", [*make_videos(3, 2, 30, 72), *make_videos(1, 3, 2, 48)], fps=24.0)
    found = folder_subjects(made, real, 10, 0, quiet)
    assert (found.size, found.fps) == (Size(5, 48, 48), 8.0), "what most have, as long as the shortest"
    assert found.real is not None and len(found.made.videos) == 4 and len(found.real.videos) == 3
    assert {v.shape for one in found.sets for v in one.videos} == {(5, 48, 48, 3)}
    assert any("3.mp4 left out: shorter than 5 frames" in note for note in found.notes)
    assert found.made.captions[1] == "clip 1.mp4"


def test_generated_videos_bring_their_prompts(run_cli, trained_run, tmp_path):
    out = tmp_path / "videos"
    prompts = ["a red circle moves left", "a blue square grows"]
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert run_cli("generate", trained_run, *options, "--steps", 1, "--out", out).code == 0
    found = folder_subjects(out, None, 10, 0, quiet)
    assert found.made.captions == prompts and found.real is None


def test_folders_that_cannot_be_measured(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither a model nor a folder of captioned videos"):
        folder_subjects(tmp_path / "empty", None, 10, 0, quiet)
    bare = write_folder(tmp_path / "bare", make_videos(2, 0), captions=False)
    with pytest.raises(UsageError, match="neither a model nor a folder of captioned videos"):
        folder_subjects(bare, None, 10, 0, quiet)
    one = write_folder(tmp_path / "one", make_videos(1, 0))
    with pytest.raises(UsageError, match="1 videos of 4 frames at 8 fps; two are needed"):
        folder_subjects(one, None, 10, 0, quiet)
    broken = write_folder(tmp_path / "broken", make_videos(2, 0))
    for name in ("0.mp4", "1.mp4"):
        (broken / name).write_bytes(b"not a video")
    with pytest.raises(UsageError, match="none of its 2 videos can be read.*0.mp4 left out"):
        folder_subjects(broken, None, 10, 0, quiet)
