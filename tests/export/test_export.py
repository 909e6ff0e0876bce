"""`export`: the same videos wherever it lies, the same bytes every time, and nothing of the user's replaced."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reelwright.bundle import DenoisingLoss, build_bundle
from reelwright.export import FORMATS, export_final, export_model
from reelwright.generate import Compute, generate_videos
from reelwright.loading import load_model, open_model
from reelwright.models.exported import METADATA_KEY, PART_FILES
from reelwright.prepare import open_prepared
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.types import UsageError, UserError
from reelwright.video.write import read_frames
from tiny_models import tiny_recipe, write_run

COMPUTE = Compute(torch.device("cpu"), "fp32")
PROMPTS = ["a red ball falls", "two dots spin, ümläut 🙂"]


def frames_of(model: str, raw: bool = False) -> np.ndarray:
    loaded = load_model(model, raw=raw)
    sampling = loaded.recipe.sampling.model_copy(update={"steps": 3})
    return np.stack(generate_videos(loaded.bundle, PROMPTS, [5, 6], loaded.recipe.size, sampling, COMPUTE))


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {"" if p == path else str(p.relative_to(path)): p.read_bytes() for p in files}


def out_of(tmp_path: Path, form: str, name: str = "out") -> Path:
    return tmp_path / (f"{name}.safetensors" if form == "safetensors" else name)


def assert_nothing_half_written(folder: Path) -> None:
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".writing")]


@pytest.mark.parametrize("raw", [False, True], ids=["averaged", "raw"])
@pytest.mark.parametrize("form", ["diffusers", "safetensors"])
def test_moved_and_its_run_deleted_it_makes_the_same_frames(tmp_path: Path, form: str, raw: bool) -> None:
    home = tmp_path / "home"
    run = write_run(tiny_recipe(home))
    before, other = frames_of(str(run.path), raw), frames_of(str(run.path), not raw)
    original = load_model(str(run.path), raw=raw)
    out = out_of(tmp_path, form)
    exported = export_model(str(run.path), out, form, raw=raw)
    moved = tmp_path / "elsewhere" / out.name
    moved.parent.mkdir()
    out.rename(moved)
    shutil.rmtree(home)
    after = frames_of(str(moved), raw)
    assert after.dtype == np.uint8 and after.tobytes() == before.tobytes() != other.tobytes()
    loaded = load_model(str(moved))
    assert (loaded.step, loaded.weights_sha256, loaded.seconds) == (20, original.weights_sha256, original.seconds)
    assert (loaded.recipe, loaded.origin, loaded.warnings) == (original.recipe, str(moved), ())
    assert (exported.step, exported.weights, exported.weights_sha256) == (
        20, "last" if raw else "averaged", original.weights_sha256,
    )  # fmt: skip
    assert_nothing_half_written(tmp_path)


def test_from_training_to_another_folder_by_the_command_line(tmp_path, write_recipe, shapes_clips, run_cli):
    home = tmp_path / "home"
    data = shutil.copytree(shapes_clips, home / "data")
    recipe = write_recipe("train.steps=4", folder=home, data=data, cache=home / "cache")
    assert run_cli("train", recipe).code == 0
    clip = tmp_path / "clip.mp4"
    assert run_cli("generate", home / "run", "--prompt", "a red square", "--seed", 3, "--out", clip).code == 0
    single = tmp_path / "one.safetensors"
    for out, form in ((tmp_path / "folder", "diffusers"), (single, "safetensors")):
        told = run_cli("export", home / "run", out, "--format", form, "--json")
        facts = json.loads(told.out)
        assert told.code == 0 and facts["step"] == 4 and facts["format"] == form
        assert facts["bytes"] == sum(len(data) for data in contents(out).values())
    shutil.rmtree(home)
    for model in (tmp_path / "folder", single):
        again = tmp_path / f"again-{model.stem}.mp4"
        repeated = run_cli("generate", model, "--from", clip, "--out", again)
        assert repeated.code == 0 and "other weights" not in repeated.err
        assert read_frames(again)[0].tobytes() == read_frames(clip)[0].tobytes()


def test_a_checkpoint_can_be_chosen(tmp_path: Path, run_cli: Any) -> None:
    run = write_run(tiny_recipe(tmp_path))
    assert run_cli("export", run.path, tmp_path / "ten", "--checkpoint", 10).code == 0
    assert export_model(str(run.checkpoints / "step-0000010"), tmp_path / "same").step == 10
    assert load_model(str(tmp_path / "ten")).step == load_model(str(tmp_path / "same")).step == 10
    with pytest.raises(UsageError, match=r"--checkpoint 10: .*ten' is not a run directory"):
        export_model(str(tmp_path / "ten"), tmp_path / "eleven", checkpoint="10")
    refused = run_cli("export", run.path, tmp_path / "x", "--checkpoint", 15)
    assert refused.code == 2 and "there are: step-0000010, step-0000020" in refused.err


def test_the_same_checkpoint_gives_the_same_bytes_in_every_form_and_again_from_an_export(tmp_path: Path) -> None:
    run = str(write_run(tiny_recipe(tmp_path)).path)
    made = {}
    for form in ("diffusers", "safetensors"):
        sources = [run, run, str(tmp_path / "diffusers-0"), str(out_of(tmp_path, "safetensors", "safetensors-0"))]
        for number, source in enumerate(sources):
            if number < 2 or form == "safetensors":
                out = out_of(tmp_path, form, f"{form}-{number}")
                export_model(source, out, form)
                made[form, number] = contents(out)
    export_model(str(out_of(tmp_path, "safetensors", "safetensors-0")), tmp_path / "back")
    assert made["diffusers", 0] == made["diffusers", 1] == contents(tmp_path / "back")
    assert made["safetensors", 0] == made["safetensors", 1] == made["safetensors", 2] == made["safetensors", 3]


def test_the_layout(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path))
    exported = export_model(str(run.path), tmp_path / "out")
    expected = {
        "model_index.json", "recipe.yaml", "README.md", "denoiser/model.safetensors", "text/model.safetensors",
        "text/tokenizer.json", "codec/model.safetensors",
    }  # fmt: skip
    assert set(exported.files) == set(contents(tmp_path / "out")) == expected
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "ReelwrightModel" and index["format_version"] == 1
    assert [index[p] for p in ("denoiser", "text", "codec")] == [
        ["reelwright", "DiT"], ["reelwright", "NativeText"], ["reelwright", "DCTCodec"],
    ]  # fmt: skip
    assert set(index["files"]) == expected - {"model_index.json"} and "host" not in str(index)
    ema = load_file(run.checkpoints / "step-0000020" / "ema.safetensors")
    for part in ("denoiser", "text"):
        held = load_file(tmp_path / "out" / part / "model.safetensors")
        wanted = {k.removeprefix(f"{part}."): v for k, v in ema.items() if k.startswith(f"{part}.")}
        assert held.keys() == wanted.keys() and all(torch.equal(held[k], wanted[k]) for k in held)

    export_model(str(run.path), tmp_path / "out.safetensors", "safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {METADATA_KEY}
        assert {name.partition(".")[0] for name in file.keys()} == {"denoiser", "text", "codec"}  # noqa: SIM118
        inner = json.loads(file.metadata()[METADATA_KEY])
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "out" / "README.md").stat().st_mode
    assert len({path.stat().st_mode for path in (tmp_path / "out").rglob("*.*")}) == 1
    assert Recipe.load(tmp_path / "out" / "recipe.yaml") == tiny_recipe(tmp_path)
    assert inner["texts"]["recipe.yaml"] == (tmp_path / "out" / "recipe.yaml").read_text()


# -- what is told of the weights


def test_the_card_tells_recipe_data_scores_and_origin(tmp_path: Path, trained_run: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    weights_sha256 = load_model(str(run)).weights_sha256
    rows = [
        {"row": "model", "metric": "joint | accuracy", "value": 0.25, "low": 0.1, "high": 0.5, "n": 256,
         "sampler": "euler", "steps": 4, "guidance": 2.0},
        {"row": "model", "metric": "motion", "value": 0.5, "sampler": "ddim", "steps": 8},
    ]  # fmt: skip
    RunDirectory(run).write_scores(rows, {"sha256": weights_sha256})
    exported = export_model(str(run), tmp_path / "out")
    prepared = open_prepared(Recipe.load(run / "recipe.yaml"))
    with open_model(str(tmp_path / "out")) as stored:
        assert stored.data is not None and stored.data.sha256 == prepared.data_sha256 == stored.origin.data_sha256
        assert (stored.data.clips, stored.data.held_out_clips) == (20, 4)
        assert stored.data.captions == len({c for s in prepared.training.samples.values() for c in s.captions})
        assert [row["metric"] for row in stored.scores] == [
            "joint | accuracy", "motion", "loss at fixed noise, while training"
        ]  # fmt: skip
        held_out = [r for r in RunDirectory(run).read_metrics() if "heldout_loss" in r][-1]
        assert stored.scores[2]["value"] == held_out["heldout_loss"] and held_out["step"] == 8
        parameters = sum(p.numel() for p in DenoisingLoss(load_model(str(run)).bundle).parameters())
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "20 clips (20 samples)", "4 more clips held out",
        "| joint \\| accuracy |  | 0.25 | [0.1, 0.5] | 256 |  | 1 |",
        "How 1: sampler euler, steps 4, guidance 2.", "How 2: sampler ddim, steps 8.",
        weights_sha256, "after 8 steps", "    train:", "learning_rate: 0.002",
        f"{parameters:,} trained parameters",
        "8 frames of 32x32 at 8 frames a second", f"torch {torch.__version__}", prepared.data_sha256,
    ):  # fmt: skip
        assert part in card, part
    assert any("names folders of this machine: run_dir, cache_dir, data.path" in note for note in exported.notes)


def test_scores_of_other_weights_are_left_out(tmp_path: Path, trained_run: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    RunDirectory(run).write_scores([{"row": "model", "metric": "of others", "value": 0.5}], {"sha256": "0" * 64})
    export_model(str(run), tmp_path / "out")
    assert "of others" not in (tmp_path / "out" / "README.md").read_text()


def test_raw_weights_do_not_carry_the_scores_of_the_average(tmp_path: Path, trained_run: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    exported = export_model(str(run), tmp_path / "out", raw=True)
    with open_model(str(tmp_path / "out")) as stored:
        assert stored.scores == ()
    assert "None has been measured on these weights." in (tmp_path / "out" / "README.md").read_text()
    assert any("nothing was measured" in note for note in exported.notes)


def test_without_its_cache_the_clips_are_those_the_final_model_counted(tmp_path, write_recipe, shapes_clips):
    from reelwright.train import train

    recipe = Recipe.load(write_recipe("train.steps=4", folder=tmp_path / "home", cache=tmp_path / "cache"))
    run = train(recipe, say=lambda _: None).run_dir
    shutil.rmtree(tmp_path / "cache")
    export_model(str(run), tmp_path / "counted")
    assert "20 clips" in (tmp_path / "counted" / "README.md").read_text()
    shutil.rmtree(run / "checkpoints" / "final")
    exported = export_model(str(run), tmp_path / "uncounted")
    assert "Not counted" in (tmp_path / "uncounted" / "README.md").read_text()
    assert any("does not count the clips" in note for note in exported.notes)
    assert not (tmp_path / "cache").exists()


# -- OUT


def test_an_earlier_export_is_replaced_when_that_is_asked_for_and_nothing_else(tmp_path: Path, run_cli: Any) -> None:
    run = str(write_run(tiny_recipe(tmp_path)).path)
    for form in ("diffusers", "safetensors"):
        out = out_of(tmp_path, form)
        export_model(run, out, form, checkpoint="10")
        before = contents(out)
        refused = run_cli("export", run, out, "--format", form)
        assert refused.code == 2 and "an earlier export is there; name another OUT, or give --overwrite" in refused.err
        assert contents(out) == before
        assert run_cli("export", run, out, "--format", form, "--overwrite").code == 0
        assert load_model(str(out)).step == 20
    (tmp_path / "empty").mkdir()
    export_model(run, tmp_path / "empty")
    export_model(run, tmp_path / "new" / "deep" / "out")
    assert load_model(str(tmp_path / "new" / "deep" / "out")).step == 20
    assert_nothing_half_written(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "form", "reason"),
    [
        ("out/thesis.txt", b"mine", "diffusers", r"the folder is not empty \(thesis.txt\)"),
        ("out/model_index.json", b'{"_class_name": "WanPipeline"}', "diffusers", "not of an export"),
        ("out/model_index.json", b"{", "diffusers", "not of an export, or damaged"),
        ("out", b"mine", "diffusers", "a file of that name"),
        ("out.safetensors/x", b"mine", "safetensors", "a folder of that name"),
        ("out.safetensors", b"mine", "safetensors", "a file that is no export"),
    ],
)
def test_what_is_not_ours_is_left(tmp_path: Path, name: str, content: bytes, form: str, reason: str) -> None:
    run = write_run(tiny_recipe(tmp_path), steps=(10,))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{reason}.*only an earlier export is replaced"):
        export_model(str(run.path), out_of(tmp_path, form), form)
    assert path.read_bytes() == content
    assert_nothing_half_written(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "samples/clip.mp4", "text/notes.md"])
def test_an_export_that_was_added_to_is_left(tmp_path: Path, name: str) -> None:
    run = write_run(tiny_recipe(tmp_path))
    out = tmp_path / "out"
    export_model(str(run.path), out, checkpoint="10")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("my own words")
    before = contents(out)
    with pytest.raises(UsageError, match=name):
        export_model(str(run.path), out)
    assert contents(out) == before


@pytest.mark.parametrize("form", ["lora", "comfyui", "onnx"])
def test_formats_that_cannot_be(tmp_path: Path, run_cli: Any, form: str) -> None:
    run = write_run(tiny_recipe(tmp_path), steps=(10,))
    told = run_cli("export", run.path, tmp_path / "out", "--format", form)
    rule = "has none: all of its weights were trained" if form in FORMATS else "not one of diffusers, safetensors"
    assert told.code == 2 and rule in told.err and not (tmp_path / "out").exists()


def test_what_is_no_trained_model_and_names_that_do_not_fit(tmp_path: Path) -> None:
    run = write_run(tiny_recipe(tmp_path), steps=(10,))
    with pytest.raises(UsageError, match="is a recipe: it has no trained weights"):
        export_model(str(run.recipe_path), tmp_path / "out")
    with pytest.raises(UsageError, match="not a model: no such file or folder; give a run directory"):
        export_model(str(tmp_path / "nothing"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"writes one file: give OUT ending in \.safetensors"):
        export_model(str(run.path), tmp_path / "out", "safetensors")
    with pytest.raises(UsageError, match="writes a folder"):
        export_model(str(run.path), tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size`: what a full disk does to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("form", ["diffusers", "safetensors"])
@pytest.mark.parametrize("size", [0, 600, 3000, 20_000])
def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path, form: str, size: int) -> None:
    run = str(write_run(tiny_recipe(tmp_path)).path)
    out = out_of(tmp_path, form)
    export_model(run, out, form, checkpoint="10")
    before = contents(out)
    with file_size_limit(size), pytest.raises(UserError, match="could not be written.*bytes are free.*Nothing was"):
        export_model(run, out, form, overwrite=True)
    assert contents(out) == before
    assert_nothing_half_written(tmp_path)
    export_model(run, out, form, overwrite=True)
    assert load_model(str(out)).step == 20


class Killed(BaseException):
    pass


def test_a_kill_at_any_sync_or_rename_leaves_a_whole_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the instant: the old one, the new one, or (between two renames) none, and the next export mends it."""
    import reelwright.export.placing as placing
    import reelwright.models.exported as exported_files

    run = str(write_run(tiny_recipe(tmp_path)).path)
    out, count, limit = tmp_path / "out", 0, 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == limit:
                raise Killed
            return real(*arguments)

        return call

    # what a kill leaves: no clean-up runs either
    monkeypatch.setattr(placing, "_remove", lambda *paths, real=placing._remove: None if limit else real(*paths))
    for owner, name in ((exported_files, "sync"), (placing, "sync"), (Path, "rename"), (Path, "replace")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    seen = set()
    for number in range(1, 100):
        limit = 0
        export_model(run, out, checkpoint="10", overwrite=True)
        count, limit = 0, number
        try:
            export_model(run, out, overwrite=True)
        except Killed:
            seen.add(load_model(str(out)).step if out.exists() else "none")
        else:
            break
    limit = 0
    assert seen == {10, "none", 20} and load_model(str(out)).step == 20
    export_model(run, out, overwrite=True)
    assert_nothing_half_written(tmp_path)


def test_an_export_killed_between_its_renames_is_put_back_even_if_the_next_fails(tmp_path: Path) -> None:
    run = str(write_run(tiny_recipe(tmp_path)).path)
    out = tmp_path / "out"
    export_model(run, out, checkpoint="10")
    out.rename(tmp_path / ".writing-out-replaced")
    with file_size_limit(600), pytest.raises(UserError, match="could not be written"):
        export_model(run, out)
    assert load_model(str(out)).step == 10
    assert_nothing_half_written(tmp_path)


# -- parts made elsewhere


@pytest.fixture(scope="module")
def frozen_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP text tower with a tokenizer made on the spot, and a tiny AutoencoderKL."""
    from diffusers import AutoencoderKL
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    words = {word: n for n, word in enumerate(["<pad>", "<unk>", "<end>", "a", "red", "ball", "falls", "dots", "spin"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder / "text")  # fmt: skip
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=2, eos_token_id=2, pad_token_id=0,
        )
    ).save_pretrained(folder / "text")  # fmt: skip
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.3, shift_factor=0.1,
    ).save_pretrained(folder / "vae" / "vae")  # fmt: skip
    return folder


@pytest.fixture
def frozen_run(tmp_path: Path, frozen_parts: Path) -> RunDirectory:
    from reelwright.training.checkpoint import TrainState, save_checkpoint
    from tiny_models import shake

    parts = shutil.copytree(frozen_parts, tmp_path / "parts")
    values = tiny_recipe(tmp_path).plain() | {
        "text": {"type": "clip", "model": str(parts / "text"), "length": 8},
        "codec": {"type": "autoencoder_kl", "model": str(parts / "vae"), "subfolder": "vae"},
    }
    recipe = Recipe.parse(values)
    run = RunDirectory.create(recipe.run_dir)
    run.write_recipe(recipe.plain())
    module = DenoisingLoss(build_bundle(recipe))
    shake(module)
    texts = {"recipe.yaml": run.recipe_path.read_text()}
    save_checkpoint(run.checkpoints, TrainState(step=10), {"model": module.state_dict()}, texts)
    return run


@pytest.mark.parametrize("form", ["diffusers", "safetensors"])
def test_frozen_parts_are_copied_in(tmp_path: Path, frozen_run: RunDirectory, form: str) -> None:
    before = frames_of(str(frozen_run.path))
    parts = load_model(str(frozen_run.path)).bundle
    out = out_of(tmp_path, form)
    exported = export_model(str(frozen_run.path), out, form)
    assert exported.weights == "last" and sum("was copied in" in note for note in exported.notes) == 2
    again = out_of(tmp_path, form, "again")
    shutil.rmtree(tmp_path / "parts")
    shutil.rmtree(frozen_run.path)
    export_model(str(out), again, form)
    assert contents(again) == contents(out)
    assert frames_of(str(again)).tobytes() == before.tobytes()
    loaded = load_model(str(again))
    assert loaded.bundle.text.fingerprint() == parts.text.fingerprint()
    assert loaded.bundle.codec.fingerprint() == parts.codec.fingerprint()
    if form == "diffusers":
        assert all(path.name in PART_FILES for path in (out / "text").iterdir())
        assert str(tmp_path) not in (out / "codec" / "config.json").read_text()
        assert b'"CLIPText"' in (out / "model_index.json").read_bytes()
    other = out_of(tmp_path, "safetensors" if form == "diffusers" else "diffusers", "other")
    export_model(str(out), other, "safetensors" if form == "diffusers" else "diffusers")
    assert frames_of(str(other)).tobytes() == before.tobytes()


def test_a_frozen_part_that_is_gone_is_named(tmp_path: Path, frozen_run: RunDirectory) -> None:
    shutil.rmtree(tmp_path / "parts" / "text")
    with pytest.raises(UserError, match=r"text.model = .*parts/text: no folder"):
        export_model(str(frozen_run.path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert_nothing_half_written(tmp_path)


@pytest.mark.parametrize("name", ["load_file", "text"])
def test_what_cannot_be_read_is_not_called_a_full_disk(
    tmp_path: Path, frozen_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The parts to copy in lie on a disk that gives an error."""
    out = tmp_path / "out"
    export_model(str(frozen_run.path), out)

    def broken(*_: object, **__: object) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        if name == "load_file":
            patch.setattr("reelwright.models.exported.load_file", broken)
        else:
            read = Path.read_text
            patch.setattr(
                Path, "read_text", lambda p, *a, **k: broken() if p.name == "config.json" else read(p, *a, **k)
            )
        with pytest.raises(UserError, match="cannot be read.*Input/output error") as told:
            export_model(str(out), tmp_path / "second")
    assert "could not be written" not in str(told.value) and "bytes are free" not in str(told.value)
    assert not (tmp_path / "second").exists()
    assert_nothing_half_written(tmp_path)


# -- checkpoints/final


def test_the_final_model_refers_to_frozen_parts_and_never_loads_them(
    tmp_path: Path, frozen_run: RunDirectory, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reelwright.models.text import CLIPTextConfig

    prepared = open_prepared(Recipe.load(trained_run / "recipe.yaml"))
    before = frames_of(str(frozen_run.path))
    with monkeypatch.context() as patch:
        patch.setattr(CLIPTextConfig, "build", lambda _: pytest.fail("the end of training loads no text encoder"))
        final = export_final(frozen_run, prepared)
    assert set(contents(final)) == {"model_index.json", "recipe.yaml", "README.md", "denoiser/model.safetensors"}
    assert f"not copied: {tmp_path / 'parts' / 'text'}" in (final / "README.md").read_text()
    assert "Not counted" in (final / "README.md").read_text(), "those clips are not what it was trained on"
    assert frames_of(str(final)).tobytes() == before.tobytes()
