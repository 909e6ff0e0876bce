"""`generate`: the same request makes the same bytes, every file says what made it, and mistakes are told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reelwright.generate.sampling as sampling
from reelwright import __version__
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.generate import Compute, Request, generate_videos, output_paths, run_generate
from reelwright.loading import load_model
from reelwright.recipe import SamplingConfig
from reelwright.types import Size, UsageError
from reelwright.video.write import read_frames, read_recipe

PROMPT = "a red circle moves left"
CPU = Compute(torch.device("cpu"))
# x264 was seen to give other bytes once in 25 writes at 32x32, never at 64x64.
SIDES = ("--width", 64, "--height", 64)


@pytest.fixture(scope="module")
def model(trained_run: Path) -> Any:
    return load_model(str(trained_run))


@pytest.fixture
def generate(run_cli, trained_run: Path) -> Any:
    """`generate("--prompt", ..., "--out", ...)` on the tiny run in fp32, which has to succeed; its output."""

    def run(*arguments: object, model: object = trained_run) -> Any:
        result = run_cli("generate", model, *arguments)
        assert result.code == 0, result.err
        return result

    return run


def one(model: Any, prompt: str = PROMPT, seed: int = 0, **sampling: Any) -> np.ndarray:
    config = SamplingConfig(steps=3, **sampling)
    return generate_videos(model.bundle, [prompt], [seed], Size(8, 32, 32), config, CPU)[0]


def test_the_same_seed_gives_the_same_bytes(generate, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        assert generate("--prompt", PROMPT, "--seed", 3, *SIDES, "--out", tmp_path / name).out == f"{tmp_path / name}\n"
    generate("--prompt", PROMPT, "--seed", 4, *SIDES, "--out", tmp_path / "c.mp4")
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c
    frames, fps = read_frames(tmp_path / "a.mp4")
    assert frames.shape == (8, 64, 64, 3) and fps == 8


def test_several_prompts_and_videos_are_named_after_what_they_show(generate, tmp_path):
    result = generate(
        "--prompt", PROMPT, "--prompt", "Ünï/code: ../x!", "--num-videos", 2, "--seed", 5, "--out", tmp_path, "--json"
    )
    names = [Path(file).name for file in json.loads(result.out)["files"]]
    assert names == [
        "0001-a-red-circle-moves-left-seed5.mp4",
        "0002-a-red-circle-moves-left-seed6.mp4",
        "0003-ünï-code-x-seed5.mp4",
        "0004-ünï-code-x-seed6.mp4",
        "0001-0004-sheet.png",
    ]
    assert all((tmp_path / name).is_file() for name in names)
    assert [read_recipe(tmp_path / name)["seed"] for name in names[:4]] == [5, 6, 5, 6]


def test_several_videos_for_one_file_name_are_numbered(generate, tmp_path):
    generate("--prompt", PROMPT, "--num-videos", 2, "--out", tmp_path / "x.mp4")
    assert sorted(p.name for p in tmp_path.glob("x*")) == [
        "x-0001.mp4", "x-0001.mp4.json", "x-0002.mp4", "x-0002.mp4.json", "x-sheet.png"
    ]  # fmt: skip


@pytest.mark.parametrize("there", ["x.mp4", "x-0002.mp4", "x-sheet.png"])
def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(run_cli, trained_run, tmp_path, there):
    (tmp_path / there).write_bytes(b"mine")
    several = () if there == "x.mp4" else ("--num-videos", 2)
    words = ("generate", trained_run, "--prompt", PROMPT, "--steps", 1, "--out", tmp_path / "x.mp4", *several)
    refused = run_cli(*words)
    told = f"reelwright: {tmp_path / there}: there already; name another place, or give --overwrite to replace it\n"
    assert (refused.code, refused.err) == (2, told)
    assert [path.name for path in tmp_path.iterdir()] == [there] and (tmp_path / there).read_bytes() == b"mine"
    assert run_cli(*words, "--overwrite").code == 0
    assert (tmp_path / there).stat().st_size > 500


def test_a_folder_that_is_there_may_have_a_dot(tmp_path):
    (tmp_path / "v1.5").mkdir()
    assert output_paths(tmp_path / "v1.5", "gif", [("hi", 0)]) == [tmp_path / "v1.5" / "0001-hi-seed0.gif"]


def test_a_video_is_the_same_alone_and_with_others(generate, model, tmp_path):
    generate("--prompt", PROMPT, "--seed", 6, *SIDES, "--out", tmp_path / "alone.mp4")
    both = ("--prompt", "a blue square", "--prompt", PROMPT, "--num-videos", 2, "--seed", 5)
    generate(*both, *SIDES, "--out", tmp_path / "all")
    (among,) = (tmp_path / "all").glob("0004-*.mp4")
    assert among.read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    # within one batch only rounding may differ
    batch = generate_videos(
        model.bundle, ["a blue square", PROMPT], [1, 6], Size(8, 32, 32), SamplingConfig(steps=3), CPU
    )
    assert np.abs(batch[1].astype(int) - one(model, seed=6)).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "webm"])
def test_other_formats(generate, tmp_path, suffix):
    generate("--prompt", PROMPT, "--format", suffix, "--out", tmp_path)
    (path,) = tmp_path.glob(f"*.{suffix}")
    frames, fps = read_frames(path)
    assert frames.shape == (8, 32, 32, 3) and fps == pytest.approx(8, rel=0.01)
    assert read_recipe(path)["prompt"] == PROMPT


def test_size_frames_and_fps_may_be_others(generate, tmp_path):
    generate("--prompt", PROMPT, "--frames", 4, "--width", 48, "--height", 16, "--fps", 4, "--out", tmp_path / "x.mp4")
    frames, fps = read_frames(tmp_path / "x.mp4")
    assert frames.shape == (4, 16, 48, 3) and fps == 4
    recipe = read_recipe(tmp_path / "x.mp4")
    assert [recipe[k] for k in ("frames", "width", "height", "fps")] == [4, 48, 16, 4]


def test_the_recipe_of_a_clip_tells_all_and_repeats_it(generate, model, trained_run, tmp_path):
    settings = ("--sampler", "ddim", "--steps", 2, "--guidance", 2.5, "--negative-prompt", "dull", "--seed", 9)
    generate("--prompt", PROMPT, *settings, *SIDES, "--precision", "fp32", "--out", tmp_path / "x.mp4")
    recipe = read_recipe(tmp_path / "x.mp4")
    assert recipe == json.loads((tmp_path / "x.mp4.json").read_text())
    assert recipe == {
        "prompt": PROMPT, "negative_prompt": "dull", "seed": 9, "sampler": "ddim", "steps": 2, "guidance": 2.5,
        "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "guidance_end": None, "spacing": "even",
        "noise_levels": [0.002, 700.0],
        "guidance_low": None,
        "shift_terminal": None, "window_frames": 0, "window_overlap": 0.5, "window_noise": "fresh",
        "frames": 8, "width": 64, "height": 64, "fps": 8.0, "precision": "fp32",
        "model": str(trained_run / "checkpoints" / "step-0000008"), "model_step": 8,
        "model_sha256": model.weights_sha256, "versions": {"reelwright": __version__, "torch": torch.__version__},
    }  # fmt: skip
    # precision is auto here: the clip's own is what counts
    result = generate("--from", tmp_path / "x.mp4", "--out", tmp_path / "y.mp4")
    assert (tmp_path / "y.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes()
    assert result.err == ""


def test_repeating_with_other_weights_says_so(generate, tmp_path):
    generate("--prompt", PROMPT, "--out", tmp_path / "x.mp4")
    result = generate("--from", tmp_path / "x.mp4", "--raw", "--out", tmp_path / "y.mp4")
    assert "other weights" in result.err and str(tmp_path / "x.mp4") in result.err


def test_checkpoints_and_raw_weights_are_other_models(generate, trained_run, tmp_path):
    asked = {
        "newest": (),
        "raw": ("--raw",),
        "early": ("--checkpoint", 4),
        "named": ("--checkpoint", "step-0000004"),
    }
    for name, options in asked.items():
        generate("--prompt", PROMPT, *options, "--out", tmp_path / f"{name}.mp4")
    early = trained_run / "checkpoints" / "step-0000004"
    generate("--prompt", PROMPT, "--out", tmp_path / "direct.mp4", model=early)
    recipes = {name: read_recipe(tmp_path / f"{name}.mp4") for name in (*asked, "direct")}
    assert {name: r["model_step"] for name, r in recipes.items()} == {
        "newest": 8, "raw": 8, "early": 4, "named": 4, "direct": 4
    }  # fmt: skip
    hashes = {name: r["model_sha256"] for name, r in recipes.items()}
    assert hashes["early"] == hashes["named"] == hashes["direct"]
    assert len(set(hashes.values())) == 3


def test_a_recipe_makes_noise_and_warns(generate, write_recipe, trained_run, tmp_path):
    """The session's cache is prepared: the trained run stands in it."""
    result = generate("--prompt", PROMPT, "--out", tmp_path / "x.mp4", model=write_recipe())
    assert "weights are random" in result.err
    assert read_recipe(tmp_path / "x.mp4")["model_sha256"] == "random"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_runs_and_repeats(model, sampler):
    video = one(model, sampler=sampler)
    assert video.shape == (8, 32, 32, 3) and video.std() > 0
    assert np.array_equal(one(model, sampler=sampler), video)


def test_guidance_one_is_no_guidance(model):
    plain = one(model, guidance=1.0)
    assert not np.array_equal(one(model, guidance=6.0), plain)
    sampling = SamplingConfig(steps=3, guidance=1.0)
    negative = generate_videos(model.bundle, [PROMPT], [0], Size(8, 32, 32), sampling, CPU, "a blue square")[0]
    assert np.array_equal(negative, plain)


@pytest.mark.parametrize("offload", ["model", "block"])
def test_offload_equals_no_offload(model, offload):
    before = [p.data_ptr() for p in model.bundle.denoiser.parameters()]
    sampling, compute = SamplingConfig(steps=3), Compute(CPU.device, "fp32", offload)
    video = generate_videos(model.bundle, [PROMPT], [0], Size(8, 32, 32), sampling, compute)[0]
    assert np.abs(video.astype(int) - one(model)).max() <= (1 if offload == "block" else 0)  # weights lie elsewhere
    assert [p.data_ptr() for p in model.bundle.denoiser.parameters()] == before


def test_offload_has_nothing_to_do_on_a_cpu(generate, tmp_path):
    for name, options in (("a", ()), ("b", ("--offload", "block"))):
        done = generate("--prompt", PROMPT, *SIDES, "--device", "cpu", *options, "--out", tmp_path / f"{name}.mp4")
        assert ("--offload block: no effect on cpu" in done.err) == bool(options)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_progress_counts_every_step(model, tmp_path):
    seen: list[tuple[int, int]] = []
    run_generate(model, Request((PROMPT,), num_videos=2, steps=3), tmp_path, None, CPU, lambda *at: seen.append(at))
    assert seen == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --prompt"),
        (("--prompt", "x", "--frames", 6), "frames = 6 does not fit the codec"),
        (
            ("--prompt", "x", "--width", 30),
            "width = 30 does not fit the codec: it must be a multiple of 8; use 24 or 32",
        ),
        (("--prompt", "x", "--sampler", "eular"), "sampler = 'eular': not one of"),
        (("--prompt", "x", "--format", "gif", "--out", "x.mp4"), "--format gif contradicts --out x.mp4"),
        (("--prompt", "x", "--format", "avi"), "unknown video format '.avi'"),
        (("--prompt", "x", "--out", "x.mov"), "unknown video format '.mov'"),
        (("--prompt", "x", "--image", "x.png"), "--image x.png: this model makes videos from text alone"),
        (("--prompt", "x", "--checkpoint", 5), "there are: step-0000004, step-0000008"),
        (("--prompt", "x", "--precision", "int4"), "--precision int4: not one of"),
        (("--prompt", "x", "--device", "tpu9"), "device = 'tpu9'"),
        (("--prompt", "x", "--offload", "most"), "--offload most: not one of none, model, block"),
        (("--prompt", "x", "--frames", 32, "--window", 6), "window_frames = 6: frames = 6 does not fit the codec"),
        (("--from", "absent.mp4"), "absent.mp4: no such file"),
        (("--from", "absent.mp4", "--prompt", "x"), "leave"),
        (("--from", "absent.mp4", "--steps", 5), "leave"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(run_cli, trained_run, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "sample_latents", lambda *_: pytest.fail("sampled first"))
    result = run_cli("generate", trained_run, *arguments)
    assert result.code == 2 and told in result.err and "Traceback" not in result.err
    assert result.err.count("reelwright:") == 1 and not list(tmp_path.iterdir())


def test_what_is_no_model(run_cli, tmp_path):
    for wrong in (tmp_path, tmp_path / "absent"):
        result = run_cli("generate", wrong, "--prompt", "x")
        assert result.code == 2 and "not a model" in result.err


def test_a_clip_of_another_origin_cannot_be_repeated(run_cli, trained_run, shapes_clips):
    result = run_cli("generate", trained_run, "--from", shapes_clips / "videos" / "00000.mp4")
    assert result.code == 1 and "carries no recipe" in result.err
    with pytest.raises(UsageError, match="its recipe has no 'prompt'"):
        Request.from_recipe({"seed": 1}, Path("x.mp4"))


def test_earlier_videos_of_a_folder_stay(generate, tmp_path):
    for _ in range(2):
        assert generate("--prompt", PROMPT, "--out", tmp_path / "videos").code == 0
    names = sorted(path.name for path in (tmp_path / "videos").glob("*.mp4"))
    assert names == ["0001-a-red-circle-moves-left-seed0.mp4", "0002-a-red-circle-moves-left-seed0.mp4"]


def test_a_prompt_that_is_cut_is_said(generate, tmp_path):
    result = generate("--prompt", "a red circle " * 20, "--out", tmp_path / "x.mp4")
    assert result.code == 0 and "its end is not seen" in result.err


def test_where_nothing_can_be_written(run_cli, trained_run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = run_cli("generate", trained_run, "--prompt", PROMPT, "--out", tmp_path / "taken")
    assert result.code == 2 and "cannot be made a folder" in result.err
    result = run_cli("generate", trained_run, "--prompt", PROMPT, "--format", "gif", "--fps", 60, "--out", tmp_path)
    assert result.code == 2 and "at most 50 frames a second" in result.err
