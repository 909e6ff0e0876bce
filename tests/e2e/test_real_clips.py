"""The main job on real clips, as small as it goes; and every clip of the collection, none lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reelwright.video.write import read_frames

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / ".." / "shared" / "clips"
pytestmark = pytest.mark.skipif(not (CLIPS / "eight.json").is_file(), reason="needs ../shared/clips")
TOY = (
    "codec.block=[4, 8, 8]", "codec.channels=24", "model.width=32", "model.depth=2", "model.heads=2", "text.width=32",
    "train.steps=2", "train.batch_size=4", "train.tensorboard=false", "train.sample_prompts=1", "sampling.steps=2",
)  # fmt: skip


@pytest.mark.full
def test_the_eight_clips_recipe(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = (ROOT / "recipes" / "eight-clips.yaml", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}")
    prepared = run_cli("prepare", *recipe, *TOY, "--json")
    assert prepared.code == 0, prepared.err
    facts = json.loads(prepared.out)
    assert facts["samples"] == {"train": 8, "dropped": 0} and facts["codec_psnr_db"] > 18
    trained = run_cli("train", *recipe, *TOY)
    assert trained.code == 0 and "8 training samples, 0 held out" in trained.err
    prompt = next(iter(json.loads((CLIPS / "captions.json").read_text()).values()))
    prompt = prompt if isinstance(prompt, str) else prompt[0]
    made = run_cli("generate", tmp_path / "run", "--prompt", prompt, "--seed", 0, "--out", tmp_path / "x.mp4")
    assert made.code == 0, made.err
    frames, fps = read_frames(tmp_path / "x.mp4")
    assert frames.shape == (16, 64, 64, 3) and fps == 8
    scored = run_cli("evaluate", tmp_path / "run", "--metrics", "nearest", "--steps", 1)
    assert scored.code == 0 and "of 8 their own" in scored.out


@pytest.mark.full
def test_all_clips_are_prepared_and_none_is_lost(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = (ROOT / "recipes" / "eight-clips.yaml", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}")
    result = run_cli("prepare", *recipe, "data.only=null", *TOY, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    captions = json.loads((CLIPS / "captions.json").read_text())
    assert len(captions) == 50 and facts["samples"]["train"] + facts["samples"]["dropped"] == 50
    assert facts["dropped"] == [] and facts["encoded"] == 50
