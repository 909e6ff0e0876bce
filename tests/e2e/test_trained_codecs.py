"""Codecs trained by `prepare`, from clips to a video and to an export that stands alone."""

import pytest

from reelwright.video.write import read_frames

AUTOENCODER = (
    "codec={type: autoencoder, block: [4, 16, 16], patch: [2, 8, 8], patch_channels: 24, channels: 6, width: 24, "
    "heads: 2, encoder_depth: 1, decoder_depth: 1, steps: 3, batch_size: 4}"
)
CONTENT_MOTION = (
    "codec={type: content_motion, block: [4, 16, 16], patch: 4, view: 8, patch_channels: 24, content: 8, "
    "content_channels: 6, motion_channels: 8, width: 24, heads: 2, steps: 3, batch_size: 4}"
)


@pytest.mark.parametrize(
    ("codec", "name"),
    [(AUTOENCODER, "autoencoder"), pytest.param(CONTENT_MOTION, "content_motion", marks=pytest.mark.full)],
    ids=["plain", "apart"],
)
def test_from_clips_to_an_export(codec, name, write_recipe, run_cli, tmp_path):
    recipe = write_recipe(codec, "train.steps=2", "train.sample_every=0", cache=tmp_path / "cache")
    inspected = run_cli("prepare", recipe)
    assert inspected.code == 0 and f"codec {name}" in inspected.out, inspected.err
    trained = run_cli("train", recipe)
    assert trained.code == 0, trained.err
    run = tmp_path / "run"
    direct = run_cli("generate", run, "--prompt", "a red circle", "--seed", 1, "--out", tmp_path / "direct.mp4")
    assert direct.code == 0, direct.err
    exported = run_cli("export", run, tmp_path / "export")
    assert exported.code == 0, exported.err
    (tmp_path / "cache").rename(tmp_path / "gone")
    alone = run_cli(
        "generate", tmp_path / "export", "--prompt", "a red circle", "--seed", 1, "--out", tmp_path / "alone.mp4"
    )
    assert alone.code == 0, alone.err
    frames = [read_frames(tmp_path / video)[0] for video in ("direct.mp4", "alone.mp4")]
    assert (frames[0] == frames[1]).all()
