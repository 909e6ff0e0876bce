"""`noise` and `refine`: strength is the schedule's time; size, rate and length stay; seams do not show."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import reelwright.refine as refine_verb
from reelwright.data import consecutive
from reelwright.data.sandbox import Decoders
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.diffusion.schedule import SCHEDULES, build_schedule
from reelwright.generate import Compute, Request, decode_latents, encode_video
from reelwright.loading import LoadedModel, load_model
from reelwright.metrics.frames import psnr
from reelwright.models.offload import Offload
from reelwright.refine import open_source, plan_windows, remaining_times, run_noise, run_refine, start_time
from reelwright.types import Compression, Size, UserError
from reelwright.video.write import read_frames, read_recipe, write_video

PROMPT = "a red circle moves left"
CPU = Compute(torch.device("cpu"))
REQUEST = Request((PROMPT,), steps=4)


def moving(num_frames: int, height: int = 64, width: int = 64, speed: float = 2.0) -> np.ndarray:
    """A bright disc on a slope of colour, uint8 `f h w c`; at speed 0 every frame is the same."""
    f, y, x = np.mgrid[0:num_frames, 0:height, 0:width].astype(float)
    inside = (x - width / 2 - speed * f) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
    slope = np.stack([60 + 80 * x / width, 40 + 90 * y / height, np.full_like(x, 90)], axis=-1)
    return np.where(inside[..., None], np.array([220.0, 60, 40]), slope).round().astype(np.uint8)


@pytest.fixture(scope="module")
def model(trained_run: Path) -> LoadedModel:
    return load_model(str(trained_run))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """20 frames of 64x64 at 8 fps: windows of 8 frames, as the tiny model was trained on, start at 0, 4, 8, 12."""
    write_video(tmp_path / "in.mp4", moving(20), 8)
    return tmp_path / "in.mp4"


def round_trip(model: LoadedModel, frames: np.ndarray) -> np.ndarray:
    """What the codec alone makes of a video, all of it at once."""
    return decode_latents(model.bundle, encode_video(model.bundle, frames, CPU), CPU)[0]


def pictures(path: Path) -> np.ndarray:
    with Decoders(1) as decoders:
        return np.stack(list(open_source(path, decoders, lambda _: None).pictures()))


# -- strength


def test_at_strength_0_both_give_the_codecs_own_round_trip(model, clip, tmp_path):
    out = run_noise(model, clip, tmp_path / "noise.mp4", 0.0, 0, CPU).path
    write_video(tmp_path / "expected.mp4", round_trip(model, pictures(clip)), 8, read_recipe(out))
    assert out.read_bytes() == (tmp_path / "expected.mp4").read_bytes()
    outcome = run_refine(model, clip, tmp_path / "refine.mp4", REQUEST, 0.0, False, CPU)
    assert outcome.steps == 0 and np.array_equal(read_frames(outcome.path)[0], read_frames(out)[0])


def test_the_video_falls_away_from_the_input_with_strength(model, clip, tmp_path):
    original = pictures(clip)
    for command in ("noise", "refine"):
        values = []
        for strength in (0.0, 0.1, 0.3, 0.5, 0.7):
            out = tmp_path / f"{command}.mp4"
            if command == "noise":
                run_noise(model, clip, out, strength, 0, CPU, overwrite=True)
            else:
                run_refine(model, clip, out, REQUEST, strength, False, CPU, overwrite=True)
            values.append(psnr(read_frames(out)[0], original))
        assert values == sorted(values, reverse=True) and values[0] > values[-1] + 3, (command, values)


def caught_starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(x, times) of every walk that begins from now on."""
    starts: list[tuple[Tensor, Tensor]] = []
    walk = refine_verb.denoise_latents

    def caught(bundle: Any, x: Tensor, times: Tensor, *rest: Any) -> Tensor:
        starts.append((x, times))
        return walk(bundle, x, times, *rest)

    monkeypatch.setattr(refine_verb, "denoise_latents", caught)
    return starts


def test_the_walk_begins_at_x_s(model, clip, tmp_path, monkeypatch):
    starts = caught_starts(monkeypatch)
    request = Request((PROMPT,), steps=10)
    assert run_refine(model, clip, tmp_path / "x.mp4", request, 0.3, False, CPU).steps == 3
    video, schedule = pictures(clip), model.bundle.objective.schedule
    t = torch.tensor([0.3], dtype=torch.float64)
    noise = []
    for (x, times), first in zip(starts, (0, 4, 8, 12), strict=True):
        assert times.tolist() == pytest.approx([0.3, 0.2, 0.1, 0])
        latents = encode_video(model.bundle, video[first : first + 8], CPU)
        noise.append((x - float(schedule.alpha(t)) * latents) / float(schedule.sigma(t)))
    for values in noise:
        assert float(values.mean()) == pytest.approx(0, abs=0.05) and float(values.std()) == pytest.approx(1, abs=0.05)
    for before, after in zip(noise[:-1], noise[1:], strict=True):  # one latent is 4 frames, half a window
        assert torch.allclose(before[:, :, 1], after[:, :, 0], atol=1e-4)
        assert not torch.allclose(before[:, :, 0], after[:, :, 0], atol=0.1)


def test_what_noise_wrote_is_where_refine_begins(model, clip, tmp_path, monkeypatch):
    starts = caught_starts(monkeypatch)
    run_refine(model, clip, tmp_path / "direct.mp4", REQUEST, 0.1, False, CPU)
    run_noise(model, clip, tmp_path / "noisy.mp4", 0.1, 0, CPU)
    run_refine(model, tmp_path / "noisy.mp4", tmp_path / "later.mp4", REQUEST, 0.1, True, CPU)
    assert len(starts) == 8
    direct, later = (torch.cat([x for x, _ in half]) for half in (starts[:4], starts[4:]))
    error = (direct - later).square().mean().sqrt() / direct.square().mean().sqrt()
    assert float(error) < 0.25  # pixels are 8 bits, end at black and white, and went through H.264
    assert read_recipe(tmp_path / "later.mp4")["already_noisy"] is True


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("strength", [1e-4, 0.1, 0.3004, 0.77, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 30, 1000])
def test_the_remaining_times(kind: str, strength: float, steps: int) -> None:
    schedule = build_schedule(kind)
    start = start_time(schedule, strength)
    times = remaining_times(schedule, steps, start)
    assert float(times[0]) == pytest.approx(float(start), rel=1e-12) and times[-1] == 0
    assert bool((times.diff() < 0).all())
    assert abs(float(start) - strength) <= (0 if schedule.grid is None else 0.001)
    assert len(times) - 1 == max(1, min(round(steps * float(start)), round(1000 * float(start))))
    if schedule.grid is not None:
        assert torch.equal(times * schedule.grid, (times * schedule.grid).round())


def test_no_time_is_left_at_strength_0() -> None:
    for kind in SCHEDULES:
        schedule = build_schedule(kind)
        assert remaining_times(schedule, 30, start_time(schedule, 0.0)).tolist() == [0]


# -- what stays


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "fps", "suffix"),
    [(2, 32, 32, 8, ".mp4"), (13, 45, 37, 23.976, ".mp4"), (9, 30, 66, 60, ".webm"), (17, 9, 70, 0.5, ".mp4")],
)
def test_size_rate_and_length_stay(model, tmp_path, num_frames, height, width, fps, suffix):
    path, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_video(path, moving(num_frames, height, width), fps)
    outcome = run_refine(model, path, out, REQUEST, 0.3, False, CPU)
    frames, rate = read_frames(out)
    assert frames.shape == (num_frames, height, width, 3) and rate == pytest.approx(fps, rel=1e-6)
    assert outcome.size == Size(num_frames, height, width) and outcome.fps == pytest.approx(fps, rel=1e-6)


def write_oddly(path: Path, frames: np.ndarray, milliseconds: list[int], **settings: Any) -> Path:
    """Losslessly, with a time for each frame and any setting of the codec context; and a second of sound."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = "rgb24", Fraction(1, 1000)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        sound: Any = container.add_stream("aac", rate=8000)
        for picture, at in zip(frames, milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path


def test_uneven_times_and_wide_pixels(model, tmp_path):
    milliseconds = [0, 40, 400, 440, 480, 1500, 1540, 1580, 1620, 2000]
    path = write_oddly(
        tmp_path / "in.mkv", moving(10, 32, 32), milliseconds, sample_aspect_ratio=Fraction(2, 1)
    )  # fmt: skip
    said: list[str] = []
    run_refine(model, path, tmp_path / "out.mp4", REQUEST, 0.2, False, CPU, say=said.append)
    with av.open(str(tmp_path / "out.mp4")) as container:
        seconds = [frame.time for frame in container.decode(video=0)]
    assert seconds == pytest.approx([at / 1000 for at in milliseconds], abs=1e-3)
    assert read_frames(tmp_path / "out.mp4")[0].shape == (10, 32, 64, 3)
    assert any("sound is left out" in line for line in said)


def test_the_same_seed_gives_the_same_bytes(model, clip, tmp_path):
    def made(name: str, seed: int, offload: Offload = "none") -> bytes:
        request, compute = Request((PROMPT,), steps=4, seed=seed), Compute(CPU.device, "fp32", offload)
        return run_refine(model, clip, tmp_path / name, request, 0.5, False, compute).path.read_bytes()

    first = made("a.mp4", 3)
    assert first == made("b.mp4", 3) == made("c.mp4", 3, offload="model") != made("d.mp4", 4)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_runs(model, clip, tmp_path, sampler):
    request = Request((PROMPT,), steps=8, sampler=sampler)
    steps: list[tuple[int, int]] = []
    run_refine(model, clip, tmp_path / "x.mp4", request, 0.5, False, CPU, lambda *at: steps.append(at))
    assert steps == [(n, 16) for n in range(1, 17)]  # 4 windows, half of 8 steps in each


# -- windows


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 12, 13, 20, 100])
def test_windows_cover_the_video_and_keep_to_the_codecs_blocks(model, num_frames):
    windows = plan_windows(model.bundle, model.recipe.size, Size(num_frames, 30, 41))
    assert windows.size == Size(4 if num_frames <= 4 else 8, 32, 48)
    assert windows.starts[0] == 0 and all(start % 4 == 0 for start in windows.starts)
    assert windows.starts[-1] < num_frames <= windows.starts[-1] + windows.size.frames < num_frames + 4
    assert all(0 < after - before <= 4 for before, after in zip(windows.starts, windows.starts[1:], strict=False))


def test_a_quarter_of_each_window_covers_the_one_before(model):
    assert plan_windows(model.bundle, Size(32, 32, 32), Size(100, 32, 32)).starts == (0, 24, 48, 68)
    assert plan_windows(model.bundle, Size(4, 32, 32), Size(10, 32, 32)).starts == (0, 4, 8)  # blocks share no frame


@pytest.mark.parametrize(("frames", "block"), [(17, 4), (5, 4), (9, 8), (33, 4), (1, 4), (8, 1)])
def test_windows_of_a_causal_codec_agree_on_the_noise_of_every_frame(frames, block):
    """A latent stands for its block's last frame: where two windows hold that frame, its noise is the same."""
    bundle: Any = SimpleNamespace(
        codec=SimpleNamespace(compression=Compression(block, 1, 1, causal=True)),
        denoiser=SimpleNamespace(check_size=lambda _: None),
    )
    windows = plan_windows(bundle, Size(frames, 2, 2), Size(100, 2, 2))
    assert windows.size.frames == frames and windows.starts[0] == 0
    assert windows.starts[-1] + frames >= 100 and windows.starts[-1] < 100
    noises: dict[int, Tensor] = {}
    for first, after in zip(windows.starts, (*windows.starts[1:], None), strict=True):
        assert first % min(block, frames) == 0 and (after is None or first < after <= first + frames), (
            "no frame is left out"
        )
        latents = torch.zeros(1, 3, 1 + (frames - 1) // block, 2, 2)
        noise = refine_verb._Noise(bundle, latents, 0, first)
        start, drawn = noise.start(), noise.draw()
        for number in range(latents.shape[2]):
            both = torch.stack([start[0, :, number], drawn[0, :, number]])
            assert torch.equal(noises.setdefault(first + number * block, both), both)
    every = torch.stack(list(noises.values()))
    assert len(torch.unique(every.flatten(1), dim=0)) == len(every) >= 100 // block, "and no two frames the same"


def test_seams_do_not_show(model, tmp_path):
    """A video that stands still: from one window to the next it changes no more than inside one."""
    write_video(tmp_path / "in.mp4", moving(40, speed=0), 8)
    result = run_refine(model, tmp_path / "in.mp4", tmp_path / "x.mp4", REQUEST, 0.3, False, CPU)
    video = read_frames(result.path)[0].astype(float)
    change = np.abs(np.diff(video, axis=0)).mean(axis=(1, 2, 3))  # between frame k and k + 1
    blocks = change[3::4]  # where a codec's block, and perhaps a window, ends
    starts_and_ends = blocks[1:-1]
    assert len(starts_and_ends) == 7 and starts_and_ends.max() < 2.5 * np.median(change) + 1


# -- the files and the command line


def test_a_refined_clip_says_what_made_it(run_cli, trained_run, clip, tmp_path, model):
    out = tmp_path / "out.mp4"
    settings = ("--strength", 0.5, "--steps", 6, "--guidance", 2, "--seed", 5, "--negative-prompt", "dull")
    result = run_cli("refine", trained_run, clip, out, "--prompt", PROMPT, *settings, "--sampler", "ddim", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {
        "file": str(out), "frames": 20, "width": 64, "height": 64, "fps": 8.0, "windows": 4, "steps": 3
    }  # fmt: skip
    recipe = read_recipe(out)
    expected = {
        "command": "refine", "input": str(clip), "strength": 0.5, "already_noisy": False, "prompt": PROMPT,
        "negative_prompt": "dull", "seed": 5, "steps": 6, "steps_taken": 3, "guidance": 2.0, "sampler": "ddim",
        "frames": 20, "width": 64, "height": 64, "fps": 8.0, "model_sha256": model.weights_sha256,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert len(recipe["input_sha256"]) == 64
    again = run_cli("generate", trained_run, "--from", out, "--out", tmp_path / "again.mp4")
    assert again.code == 2 and f"made of {clip} by `reelwright refine` (strength 0.5, seed 5)" in again.err


def test_noise_on_the_command_line(run_cli, trained_run, clip, tmp_path):
    result = run_cli("noise", trained_run, clip, tmp_path / "x.webm", "--strength", 0.2, "--seed", 3)
    assert result.code == 0 and result.out == f"{tmp_path / 'x.webm'}\n", result.err
    assert "20 frames of 64x64 at 8 fps: 4 windows of 8" in result.err
    recipe = read_recipe(tmp_path / "x.webm")
    assert [recipe[name] for name in ("command", "strength", "seed")] == ["noise", 0.2, 3]


def test_noise_takes_what_refine_takes(run_cli, trained_run, clip, tmp_path):
    """The same weights and the same way to save memory; the advice names nothing that the command has not."""
    for options in ((), ("--raw",), ("--offload", "model"), ("--checkpoint", "newest")):
        result = run_cli("noise", trained_run, clip, tmp_path / "x.mp4", "--overwrite", *options)
        assert result.code == 0, result.err
        weights = load_model(str(trained_run), raw="--raw" in options).weights_sha256
        assert read_recipe(tmp_path / "x.mp4")["model_sha256"] == weights


def test_a_video_far_from_training_is_one_warning(run_cli, trained_run, tmp_path):
    for name, (height, width, fps) in {"far": (96, 32, 8), "fast": (32, 32, 25), "near": (40, 32, 10)}.items():
        write_video(tmp_path / f"{name}.mp4", moving(8, height, width), fps)
        options = ("--prompt", PROMPT, "--steps", 2)
        result = run_cli("refine", trained_run, tmp_path / f"{name}.mp4", tmp_path / f"{name}-x.mp4", *options)
        assert result.code == 0, result.err
        assert result.err.count("trained at 32x32, 8 fps") == (name != "near")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("in.mp4", "x.mp4", "--strength", -0.1), 2, "--strength -0.1: must lie in [0, 1]"),
        (("in.mp4", "x.mp4", "--strength", 1.01), 2, "--strength 1.01: must lie in [0, 1]"),
        (("in.mp4", "x.mp4", "--strength", "nan"), 2, "--strength nan: must lie in [0, 1]"),
        (("in.mp4", "in.mp4"), 2, "is the input itself"),
        (("in.mp4", "link.mp4"), 2, "is the input itself"),
        (("in.mp4", "folder.mp4"), 2, "is a folder"),
        (("in.mp4", "one.mp4"), 2, "one.mp4: there already; name another place, or give --overwrite to replace it"),
        (("in.mp4", "x.gif"), 2, "end the name of the result in .mp4 or .webm"),
        (("in.mp4", "x"), 2, "end the name of the result in .mp4 or .webm"),
        (("in.mp4", "text.mp4/x.mp4"), 2, "cannot be made a folder"),
        (("absent.mp4", "x.mp4"), 2, "absent.mp4: no such file"),
        (("folder.mp4", "x.mp4"), 2, "folder.mp4: a folder"),
        (("text.mp4", "x.mp4"), 1, "text.mp4: not a video"),
        (("cut.mp4", "x.mp4"), 1, "cut.mp4: "),
        (("one.mp4", "x.mp4"), 1, "one.mp4: holds a single frame"),
    ],
)
@pytest.mark.parametrize("command", ["noise", "refine"])
def test_mistakes_are_told_before_any_work(
    run_cli, trained_run, clip, tmp_path, monkeypatch, command, arguments, code, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(refine_verb, "encode_video", lambda *_: pytest.fail("worked first"))
    (tmp_path / "link.mp4").symlink_to(clip)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("this is text")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:700])
    write_video(tmp_path / "one.mp4", moving(1), 8)
    before = sorted(tmp_path.iterdir())
    prompt = ("--prompt", "x") if command == "refine" else ()
    result = run_cli(command, trained_run, *arguments, *prompt)
    assert result.code == code and told in result.err and "Traceback" not in result.err, result.err
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_left_at_pure_noise(run_cli, trained_run, clip, tmp_path):
    out = tmp_path / "x.mp4"
    result = run_cli("noise", trained_run, clip, out, "--strength", 1)
    assert result.code == 2 and "at pure noise nothing of the video is left" in result.err
    result = run_cli("refine", trained_run, clip, out, "--strength", 1, "--already-noisy", "--prompt", "x")
    assert result.code == 2 and "--already-noisy --strength 1" in result.err
    result = run_cli("refine", trained_run, clip, out, "--strength", 1, "--steps", 2, "--prompt", "x")
    assert result.code == 0, result.err


def test_what_is_too_large_is_told(model, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(refine_verb, "MAX_WINDOW_PIXELS", 8 * 64 * 63)
    with pytest.raises(UserError, match=r"64x64: 8 frames of that size are more than"):
        run_noise(model, clip, tmp_path / "x.mp4", 0.3, 0, CPU)
    monkeypatch.undo()

    def exhausted(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(refine_verb, "denoise_latents", exhausted)
    with pytest.raises(
        UserError, match="not enough memory for windows of 8x64x64.*--offload model or --precision bf16"
    ):
        run_refine(model, clip, tmp_path / "x.mp4", REQUEST, 0.3, False, CPU)
    monkeypatch.setattr(refine_verb, "encode_video", exhausted)
    with pytest.raises(UserError, match="not enough memory for windows of 8x64x64.*--offload model$"):
        run_noise(model, clip, tmp_path / "x.mp4", 0.3, 0, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_earlier_results_stay_where_the_work_fails(model, clip, tmp_path, monkeypatch):
    out = run_noise(model, clip, tmp_path / "x.mp4", 0.3, 0, CPU).path
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def fails_late(bundle: Any, x: Tensor, *_: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError
        return x

    monkeypatch.setattr(refine_verb, "denoise_latents", fails_late)
    with pytest.raises(ZeroDivisionError):
        run_refine(model, clip, out, REQUEST, 0.3, False, CPU, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_strangers_file_is_decoded_in_a_child_alone(model, clip, tmp_path, monkeypatch):
    for room in ("decode", "consecutive", "containers"):
        monkeypatch.setattr(f"reelwright.data.{room}.opened", lambda *_: pytest.fail("opened in this process"))
    assert run_refine(model, clip, tmp_path / "x.mp4", REQUEST, 0.2, False, CPU).size.frames == 20


def test_a_file_that_changes_while_it_is_read_is_told(model, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(consecutive, "PORTION_BYTES", 1)  # a picture at a time
    call = Decoders.submit

    def submit(self: Decoders, function: Any, path: Path, *rest: Any) -> Any:
        if function is consecutive.read_portion and rest[1] == 6:
            for child in list(self._children):  # a new child has to open the file again
                child.kill()
            clip.write_bytes(clip.read_bytes()[:2000])
        return call(self, function, path, *rest)

    monkeypatch.setattr(Decoders, "submit", submit)
    with pytest.raises(UserError, match=r"in\.mp4: cannot be decoded any longer \(.*\); was it changed\?"):
        run_noise(model, clip, tmp_path / "x.mp4", 0.2, 0, CPU)
    assert not (tmp_path / "x.mp4").exists()
