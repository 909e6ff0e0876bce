"""`evaluate` and its benchmark: every control row, intervals, scores kept with the run, and no figure from nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reelwright.benchmark import HEADERS, run_benchmark, runner, through_codec
from reelwright.evaluate import METRICS, Result, Settings, run_evaluate
from reelwright.generate import Compute
from reelwright.loading import load_model
from reelwright.metrics.frames import psnr
from reelwright.models.codec import BlockCodec
from reelwright.prepare import prepare
from reelwright.quality import subjects
from reelwright.recipe import Recipe, SamplingConfig
from reelwright.run import RunDirectory, score_conditions
from reelwright.shapes.controls import CONTROLS
from reelwright.shapes.files import write_collection
from reelwright.shapes.frozen import checker_hash
from reelwright.shapes.tables import splits_of
from reelwright.train import train
from reelwright.types import Size, UsageError, UserError
from reelwright.video.write import write_video
from tiny_clip import save_tiny_clip

CPU = Compute(torch.device("cpu"))
FAST: dict[str, Any] = {"steps": 1, "guidance": 1.0}
CONTROL_ROWS = {
    "model, shuffled captions", "renderer", "renderer through codec", "untrained model", "nearest training clip",
    *(f"model, {name}" for name in CONTROLS),
}  # fmt: skip


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be scored."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A collection of the benchmark's own size, 64x64 and 16 frames, and a prepared recipe of random weights."""
    folder = tmp_path_factory.mktemp("full_size")
    write_collection(folder / "shapes", 10, 0, "s1", Size(16, 64, 64), 8.0, write_video)
    recipe = Recipe.parse(
        {
            "run_dir": str(folder / "run"), "cache_dir": str(folder / "cache"),
            "data": {"path": str(folder / "shapes"), "frames": 16, "fps": 8, "width": 64, "height": 64},
            "codec": {"type": "pca", "block": [4, 8, 8], "channels": 48},
            "text": {"type": "native", "vocab_size": 300, "width": 32, "depth": 1},
            "model": {"type": "dit", "width": 32, "depth": 1, "heads": 2},
            "sampling": FAST,
        }
    )  # fmt: skip
    prepare(recipe)
    recipe.save(folder / "recipe.yaml")
    return folder, recipe


def rows_of(result: Result, metric: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["row"], r.get("split", "")): r for r in result.rows if r["metric"] == metric}


def test_every_row_stands_beside_the_models_with_its_interval(full_size):
    folder, recipe = full_size
    result = run_evaluate(str(folder / "recipe.yaml"), Settings(("shapes", "memorisation"), prompts=6), CPU)
    joint = rows_of(result, "joint accuracy")
    assert {row for row, _ in joint} == {"model"} | CONTROL_ROWS
    assert {split for row, split in joint if row == "model"} == set(splits_of("s1"))
    assert all(r["n"] == 6 and 0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in joint.values())
    renderer = joint["renderer", "in_distribution"]
    assert renderer["value"] == 1.0 and renderer["low"] < 1.0, "the checker reads what the renderer drew"
    assert joint["untrained model", "in_distribution"]["value"] == 0.0
    assert joint["model, blank", "in_distribution"]["value"] == 0.0
    title, headers, cells = result.tables[0]
    assert (title, headers) == ("moving shapes", HEADERS) and len(cells) == len(joint)
    assert any("random" in note for note in result.notes)
    assert "euler 1 steps, guidance 1" in result.notes[-1]
    assert not recipe.run_dir.exists(), "a recipe's random weights have no run to write into"


def test_the_codec_row_is_the_ceiling_of_the_latents(full_size):
    folder, recipe = full_size
    model = load_model(str(folder / "recipe.yaml"))
    videos = [np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)]
    (noise,) = through_codec(model.bundle, videos, CPU)
    assert noise.shape == videos[0].shape and psnr(noise, videos[0]) < 15, "48 of 768 numbers cannot hold noise"


def test_renders_are_read_once(full_size, monkeypatch):
    """The renderer's row and the fresh renders of the memorisation figures are one set."""
    rendered = []
    render = runner.render
    monkeypatch.setattr(runner, "render", lambda *a: rendered.append(a[0]) or render(*a))
    model = load_model(str(full_size[0] / "recipe.yaml"))
    run_benchmark(model, SamplingConfig.parse(FAST), CPU, 3, ("paraphrases",))
    assert len(rendered) == 2 * 3, "the prompts' own scenes, and the nearest training scenes"


def test_the_same_evaluation_twice_is_the_same(full_size):
    model = load_model(str(full_size[0] / "recipe.yaml"))
    twice = [run_benchmark(model, SamplingConfig.parse(FAST), CPU, 3, ("paraphrases",)) for _ in range(2)]
    assert twice[0].rows == twice[1].rows and {row.split for row in twice[0].rows} == {"paraphrases"}
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(twice[0].shown, twice[1].shown, strict=True))


def test_scores_and_report_stay_with_the_run(run_cli, run, tmp_path):
    for path in ("scores.json", "evaluation.png", "shapes.html"):
        assert not (run / path).exists()
    before = (run / "report.html").read_text()
    result = run_cli(
        "evaluate", run, "--prompts", 2, "--steps", 1, "--split", "paraphrases", "--json", tmp_path / "s.json"
    )
    assert result.code == 0, result.err
    assert "joint accuracy" in result.out and "renderer through codec" in result.out and "held-out loss" in result.out
    rows, model = RunDirectory(run).read_scores()
    written = json.loads((tmp_path / "s.json").read_text())
    assert rows == written["scores"] and model["sha256"] == written["about"]["model_sha256"]
    run_cli("evaluate", run, "--metrics", "heldout")
    assert len(RunDirectory(run).read_scores()[0]) == len(rows), "other metrics of the same weights stay"
    assert {r["metric"] for r in rows} > {"joint accuracy", "held-out loss", "generated frames per second"}
    assert (model["steps_trained"], model["clips_seen"]) == (8, 32)
    assert (run / "evaluation.png").stat().st_size > 0
    assert "renderer through codec" in (run / "report.html").read_text() and "renderer through codec" not in before
    page = (run / "shapes.html").read_text()
    assert "renderer through codec" in page and "Stated and read: paraphrases" in page and "The worst 2" in page
    assert f"{model['parameters']:,} parameters" in page and "euler 1 steps, guidance" in page
    assert (run / "shapes-worst.png").stat().st_size > 0


def test_every_row_says_how_it_was_measured(run_cli, run):
    """Two calls under other settings: each row keeps its own, and only what it depends on."""
    assert run_cli("evaluate", run, "--metrics", "dynamic,heldout", "--prompts", 2, "--steps", 1).code == 0
    options = ("--metrics", "shapes", "--prompts", 3, "--steps", 2, "--seed", 5, "--split", "paraphrases")
    assert run_cli("evaluate", run, *options, "--sampler", "ddim").code == 0
    rows, _ = RunDirectory(run).read_scores()
    own = {row["metric"]: score_conditions(row) for row in rows if row["row"] == "model"}
    sampled = {"guidance": 4.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "spacing": "even"}
    cpu = {"device": "cpu", "precision": own["clips that move"]["precision"]}
    assert own["clips that move"] == {**cpu, "sampler": "euler", "steps": 1, **sampled, "seed": 0, "prompts": 2}
    shapes = {"sampler": "ddim", "steps": 2, **sampled, "seed": 5, "prompts": 3, "checker": checker_hash()[:12]}
    assert own["joint accuracy"] == {**cpu, **shapes}
    assert own["held-out loss"] == cpu
    page = (run / "report.html").read_text()
    for how in ("sampler ddim, steps 2,", "sampler euler, steps 1,", f"device cpu, precision {cpu['precision']}."):
        assert how in page
    assert len(re.findall(r"How \d: ", page)) == 3
    for words in (("--metrics", "heldout"), ("--metrics", "heldout", "--checkpoint", "4")):
        run_cli("evaluate", run, *words)
    assert {row["metric"] for row in RunDirectory(run).read_scores()[0]} == {"held-out loss"}, (
        "other weights, others' rows"
    )


def test_the_held_out_loss_is_the_one_of_training(run):
    result = run_evaluate(str(run), Settings(("heldout",)), CPU)
    (row,) = result.rows
    trained = [r for r in RunDirectory(run).read_metrics() if "heldout_loss" in r][-1]
    assert row["value"] == pytest.approx(trained["heldout_loss"], rel=1e-5) and row["split"] == "validation"


@pytest.fixture(scope="module")
def three_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A black, a grey and a white clip, learned by heart in a few steps: the run's directory."""
    folder = tmp_path_factory.mktemp("three")
    captions = {"black.mp4": "night", "grey.mp4": "fog", "white.mp4": "snow"}
    texture = np.random.default_rng(0).integers(-8, 8, (8, 32, 32, 3))
    for name, level in zip(captions, (20, 128, 235), strict=True):
        write_video(folder / "data" / "videos" / name, (level + texture).astype(np.uint8), 8.0)
    (folder / "data" / "captions.json").write_text(json.dumps(captions))
    recipe = Recipe.parse(
        {
            "run_dir": str(folder / "run"), "cache_dir": str(folder / "cache"),
            "data": {"path": str(folder / "data"), "frames": 8, "fps": 8, "width": 32, "height": 32, "validation": 0},
            "codec": {"type": "pca", "block": [4, 8, 8], "channels": 24},
            "text": {"type": "native", "vocab_size": 300, "width": 32, "depth": 1},
            "model": {"type": "dit", "width": 32, "depth": 2, "heads": 2},
            "train": {
                "steps": 150, "batch_size": 6, "learning_rate": 5e-3, "warmup_steps": 10, "precision": "fp32",
                "ema": 0.9, "evaluate_every": 0, "tensorboard": False, "sample_prompts": 1,
            },
            "sampling": {"steps": 8, "guidance": 2.0},
        }
    )  # fmt: skip
    return train(recipe, say=lambda _: None).run_dir


def test_each_caption_brings_back_its_own_clip(three_clips):
    result = run_evaluate(str(three_clips), Settings(), CPU)
    own = rows_of(result, "own clip is nearest")
    assert own["model", "train"]["value"] == 1.0 and own["model", "train"]["n"] == 3
    assert own["chance", "train"]["value"] == pytest.approx(1 / 3)
    decibels = rows_of(result, "PSNR to own clip (dB)")["model", "train"]
    assert decibels["value"] > 12 and decibels["low"] <= decibels["value"] <= decibels["high"]
    title, _, cells = result.tables[0]
    assert title.startswith("nearest clip: 3 of 3 their own, 100.0% [43.8%, 100.0%] where chance gives 33.3%; mean")
    assert f"{decibels['value']:.2f} [{decibels['low']:.2f}, {decibels['high']:.2f}] dB" in title
    assert [row[2] for row in cells] == ["yes"] * 3
    assert any("none is held out" in r["metric"] for r in result.rows), "a loss on training clips says that it is one"
    assert (three_clips / "evaluation.png").is_file()


def test_a_folder_of_shapes_is_read_as_it_is(run_cli, full_size):
    folder = full_size[0] / "shapes"
    result = run_cli("evaluate", folder, "--prompts", 5)
    assert result.code == 0 and "files  as rendered  100.0%" in result.out
    files = run_evaluate(str(folder), Settings(), CPU)
    counted = [rows_of(files, f"{kind}joint accuracy")["files", "as rendered"] for kind in ("", "still ")]
    assert sum(row["n"] for row in counted) == 10 and all(row["value"] == 1.0 for row in counted)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(("fid",)), "--metrics fid: not a metric; known: auto, shapes"),
        (Settings(()), "--metrics: none is given"),
        (Settings(("shapes",), splits=("train",)), "--split train: not a split of track s1; known: in_distribution"),
        (Settings(sampling={"sampler": "eular"}), "sampler = 'eular'"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_written(run, settings, told):
    with pytest.raises(UsageError, match=told):
        run_evaluate(str(run), settings, CPU)
    assert not (run / "scores.json").exists()


def test_metrics_that_do_not_fit(three_clips, full_size):
    with pytest.raises(UsageError, match="was not trained on moving shapes"):
        run_evaluate(str(three_clips), Settings(("shapes",)), CPU)
    with pytest.raises(UsageError, match="metric nearest: needs a model.*a folder of videos"):
        run_evaluate(str(full_size[0] / "shapes"), Settings(("nearest",)), CPU)
    with pytest.raises(UsageError, match="is no shapes collection"):
        run_evaluate(str(three_clips.parent / "data"), Settings(("shapes",)), CPU)
    with pytest.raises(UsageError, match="not a model"):
        run_evaluate(str(three_clips.parent / "nowhere"), Settings(), CPU)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--split", "paraphrases"], "--split: has no effect"),
        (["--steps", 3], "--steps: has no effect"),
        (["--checkpoint", "8"], "--checkpoint 8: .* is a folder of videos, not a model"),
        (["--raw"], "--raw: .* is a folder of videos, not a model"),
        (["--metrics", "shapes", "--real", "."], "--real: has no effect on --metrics shapes; it is for clip, temporal"),
        (
            ["--metrics", "dynamic", "--clip", "x"],
            "--clip: has no effect on --metrics dynamic; it is for clip, temporal",
        ),
        (["--metrics", "fvd"], "--features i3d:PATH"),
        (["--metrics", "fvd", "--features", "i3d:x"], "name the real ones: --real FOLDER"),
    ],
)
def test_options_without_effect_on_a_folder_are_refused(run_cli, full_size, options, told):
    result = run_cli("evaluate", full_size[0] / "shapes", *options)
    assert result.code == 2 and re.search(told, result.err), result.err


def test_options_without_effect_on_a_model_are_refused(run, tmp_path):
    for settings, told in (
        (Settings(("temporal",), real=tmp_path), "--real: has no effect, .* is a model"),
        (Settings(("heldout",), sampling={"steps": 3}), "--steps: has no effect on --metrics heldout"),
        (
            Settings(("clip",), splits=("paraphrases",)),
            "--split: has no effect on --metrics clip; it is for shapes, memorisation",
        ),
        (Settings(("clip",), features="clip:x"), "--features: has no effect on --metrics clip; it is for fvd"),
    ):
        with pytest.raises(UsageError, match=told):
            run_evaluate(str(run), settings, CPU)


def test_every_metric_is_named_in_the_help(run_cli):
    words = run_cli("evaluate", "--help").out.replace("│", " ").split()
    assert set(METRICS) <= {word.strip(",;:") for word in words}


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_all_metrics_share_one_set_of_videos(run_cli, run, tiny_clip, tmp_path, monkeypatch):
    """Clip, motion and Frechet distance of a run: generated once, in the table, the JSON, the run and its page."""
    made = []
    generate = subjects.generate_videos
    monkeypatch.setattr(subjects, "generate_videos", lambda *a, **k: made.append(a[1]) or generate(*a, **k))
    result = run_cli(
        "evaluate", run, "--metrics", "clip,temporal,dynamic,fvd", "--prompts", 3, "--steps", 1, "--clip", tiny_clip,
        "--features", f"clip:{tiny_clip}", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert len(made) == 1 and "held-out captions" in result.out and "real clips, shuffled captions" in result.out
    written = json.loads((tmp_path / "s.json").read_text())
    assert {v["caption"] for v in written["videos"]["clip, model"]} == set(made[0])
    rows, _ = RunDirectory(run).read_scores()
    assert {"CLIP cosine", "CLIPScore", "clips that move", "warping error"} <= {r["metric"] for r in rows}
    assert {r["row"] for r in rows if r["metric"] == "warping error"} > {"model", "model, frozen", "model, noise"}
    assert sum(r["metric"] == "clips that move" and r["row"] == "model" for r in rows) == 1, (
        "dynamic came with temporal"
    )
    named = {row["metric"]: row["network"] for row in rows if "network" in row}
    assert all(str(tiny_clip) in network for network in named.values())
    assert {name.split(" (")[0] for name in named} == {
        "CLIP cosine", "CLIPScore", "CLIP cosine, matched minus shuffled", "frame consistency", "Frechet video distance"
    }  # fmt: skip
    page = (run / "report.html").read_text()
    assert "frame consistency (CLIP cosine)" in page and "Frechet video distance (CLIP" in page
    assert (run / "evaluation.png").stat().st_size > 0


def test_temporal_is_never_printed_without_the_dynamic_degree(run_cli, full_size):
    result = run_cli("evaluate", full_size[0] / "shapes", "--metrics", "temporal", "--prompts", 2)
    assert result.code == 0, result.err
    assert "dynamic degree" in result.out and "videos, frozen" in result.out and "videos, noise" in result.out
    assert "no row of real clips: name a folder of them with --real FOLDER" in result.out


def test_a_folder_beside_real_clips(run_cli, full_size, three_clips, tiny_clip, tmp_path):
    """Every metric without a model; the folder is not written to."""
    folder, data = full_size[0] / "shapes", three_clips.parent / "data"
    before = sorted(p.name for p in data.rglob("*"))
    result = run_cli(
        "evaluate", data, "--real", folder, "--metrics", "clip,dynamic,fvd", "--clip", tiny_clip, "--features",
        f"clip:{tiny_clip}", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert {r["row"] for r in rows if r["metric"] == "CLIP cosine"} == {
        "videos", "videos, shuffled captions", "real clips", "real clips, shuffled captions"
    }  # fmt: skip
    assert next(r for r in rows if r["row"] == "real clips")["n"] == 10
    assert "8x32x32 at 8 fps" in result.out and "too few" in result.out
    assert sorted(p.name for p in data.rglob("*")) == before


def test_a_folder_of_plain_clips_is_measured_without_any_network(three_clips):
    result = run_evaluate(str(three_clips.parent / "data"), Settings(), CPU)
    consistency = rows_of(result, "frame consistency (SSIM of luma)")
    assert {row for row, _ in consistency} == {"videos", "videos, frozen", "videos, noise"}
    assert result.about["folder"] == str(three_clips.parent / "data") and "parameters" not in result.about


def test_a_network_that_is_not_there_is_told_before_anything_is_generated(run, monkeypatch):
    monkeypatch.setattr(subjects, "generate_videos", lambda *a, **k: pytest.fail("generated all the same"))
    with pytest.raises(UserError, match="--clip = ./nowhere"):
        run_evaluate(str(run), Settings(("temporal",), clip="./nowhere"), CPU)
    with pytest.raises(UserError, match="i3d:nowhere.pt"):
        run_evaluate(str(run), Settings(("fvd",), features="i3d:nowhere.pt"), CPU)


def test_without_held_out_clips_the_training_ones_are_used_and_said_so(three_clips):
    result = run_evaluate(str(three_clips), Settings(("dynamic",), sampling={"steps": 1}), CPU)
    assert {r["split"] for r in result.rows} == {"training captions"}
    assert any("those the model was trained on" in note for note in result.notes)


def test_a_cache_fitted_anew_is_not_measured(run, monkeypatch):
    """Old weights on another codec's latents would give a figure that means nothing."""
    monkeypatch.setattr(BlockCodec, "fingerprint", lambda self: "another")
    with pytest.raises(UsageError, match="the codec in .* is not the one .* was trained with"):
        run_evaluate(str(run), Settings(("heldout",)), CPU)


def test_prompts_are_of_the_track_trained_on(run, monkeypatch):
    asked = []
    draw = runner.draw_prompts
    monkeypatch.setattr(runner, "draw_prompts", lambda *a, **k: asked.append(a[3]) or draw(*a, **k))
    monkeypatch.setattr(runner, "read_track", lambda path: "s1-hard")
    run_evaluate(str(run), Settings(("shapes",), prompts=2, splits=("paraphrases",), sampling={"steps": 1}), CPU)
    assert asked == ["s1-hard"]
