"""Every family through the commands a person types: prepare, train, resume, generate, by overrides of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reelwright.config import to_yaml
from reelwright.pretrained.hunyuan import TEMPLATE
from reelwright.video.write import read_frames
from tiny_cogvideox import save_cogvideox
from tiny_families import save_wan
from tiny_hunyuan import save_hunyuan
from tiny_ltx import save_ltx


def wan(folder: Path) -> dict[str, Any]:
    return {"model": {"type": "wan", "model": str(save_wan(folder / "model"))}}


def hunyuan(folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    model = save_hunyuan(folder, TEMPLATE)
    tokenizer: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
    prefix = len(tokenizer(TEMPLATE.split("{}")[0])["input_ids"])
    text = {"type": "hunyuan", "template_tokens": prefix}
    return {"model": {"type": "hunyuan", "model": str(model)}, "text": text}


def cogvideox(folder: Path) -> dict[str, Any]:
    return {"model": {"type": "cogvideox", "model": str(save_cogvideox(folder / "model", "5b"))}}


def ltx(folder: Path) -> dict[str, Any]:
    return {"model": {"type": "ltx", "model": str(save_ltx(folder / "model", "0.9.1"))}}


FAMILIES = {"wan": wan, "hunyuan": hunyuan, "cogvideox": cogvideox, "ltx": ltx}


@pytest.mark.parametrize("family", FAMILIES)
def test_prepare_train_resume_and_generate(family, shapes_clips, tmp_path, run_cli):
    recipe = tmp_path / "recipe.yaml"
    values = {
        "run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"),
        "data": {"path": str(shapes_clips), "frames": 5, "fps": 8, "width": 32, "height": 32, "only": None},
        **FAMILIES[family](tmp_path),
        "train": {
            "steps": 2, "batch_size": 2, "precision": "fp32", "device": "cpu", "save_every": 1, "evaluate_every": 2,
            "evaluate_samples": 2, "sample_every": 0, "sample_prompts": 1, "warmup_steps": 0, "tensorboard": False,
        },
    }  # fmt: skip
    recipe.write_text(to_yaml(values))
    only = "data.only=[" + ",".join(sorted(p.name for p in (shapes_clips / "videos").glob("*.mp4"))[:4]) + "]"
    for command in (("prepare", recipe, only), ("train", recipe, only), ("train", recipe, only, "train.steps=3")):
        done = run_cli(*command)
        assert done.code == 0, done.err
    assert "done: 3 steps" in done.err
    video = tmp_path / "video.mp4"
    made = run_cli("generate", tmp_path / "run", "--prompt", "a red circle moves left", "--steps", 2, "--out", video)
    assert made.code == 0, made.err
    frames, _ = read_frames(video)
    assert frames.shape == (5, 32, 32, 3) and frames.std() > 0
