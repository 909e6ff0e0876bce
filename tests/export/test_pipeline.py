"""A fine-tuned family as a pipeline of diffusers: its own card, nothing dragged along, replaced when asked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from lora_runs import LORA, lora_recipe, train_run
from reelwright.config import parse_yaml
from reelwright.export import Exported, export_model
from reelwright.export.description import Description, write_pipeline_card
from reelwright.export.pipeline import _pipeline_folder
from reelwright.loading import open_model
from reelwright.models.exported import PIPELINE_INDEX, read_pipeline_index
from reelwright.run import RunDirectory
from reelwright.types import UsageError, UserError
from tiny_families import save_wan

BASE_CARD = """\
---
license: other
license_name: tiny-license
license_link: LICENSE.txt
tags: [video]
---
# The base as its makers tell of it
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder: a card, a licence, and what a pipeline does not need."""
    folder = save_wan(tmp_path_factory.mktemp("base") / "model")
    (folder / "README.md").write_text(BASE_CARD)
    (folder / "LICENSE.txt").write_text("no harm")
    (folder / "vae" / "old.bin").write_bytes(b"a pickle")
    for name in ("all-in-one.safetensors", "assets/logo.png", ".gitattributes", "vae/.cache/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"large")
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory, shapes_clips: Path) -> Path:
    return train_run(
        lora_recipe(tmp_path_factory.mktemp("run"), shapes_clips, {"type": "wan", "model": str(base)}, LORA)
    )


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_model(str(run), tmp_path_factory.mktemp("out") / "pipeline")


@pytest.fixture
def out(made: Exported, tmp_path: Path) -> Path:
    """A copy of the export, to do harm to."""
    return shutil.copytree(made.path, tmp_path / "pipeline")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def front_of(card: str) -> Any:
    return parse_yaml(card.split("---\n")[1], "card")


def test_the_card_is_of_what_was_trained(made: Exported, base: Path) -> None:
    card = (made.path / "README.md").read_text()
    assert front_of(card) == {
        "library_name": "diffusers", "pipeline_tag": "text-to-video", "license": "other",
        "license_name": "tiny-license", "license_link": "LICENSE.txt",
    }  # fmt: skip
    for part in (
        f"The text-to-video model `{base}`, trained further with Reelwright", "in adapters that were added",
        "4 clips (4 samples)", "None has been measured on these weights.", "| transformer | WanTransformer3DModel | ",
        "| vae | AutoencoderKLWan |  | ", "as in the base", "after 5 steps", "    train:", made.weights_sha256,
    ):  # fmt: skip
        assert part in card, part
    assert "as its makers tell" not in card and "knows what its captions named" not in card


def test_the_lines_of_the_card_make_a_video(made: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[tuple[int, int, int]] = []
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda f, _, fps: shown.append((len(f), f[0].shape[0], fps)))
    card = (made.path / "README.md").read_text()
    use = card.partition("## Use")[2].partition("There the scheduler")[0].replace("THIS_FOLDER", str(made.path))
    exec("\n".join(line.strip() for line in use.splitlines()))
    assert shown == [(5, 32, 8)]


def test_scores_are_in_the_card_and_all_of_them_in_the_index(run: Path, made: Exported, tmp_path: Path) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    row = {"row": "model", "metric": "joint accuracy", "value": 0.25, "n": 8}
    RunDirectory(mine).write_scores([row, {**row, "metric": "abstained"}], {"sha256": made.weights_sha256})
    exported = export_model(str(mine), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| joint accuracy |  | 0.25 |" in card and f"`scores` in [{PIPELINE_INDEX}]({PIPELINE_INDEX})" in card
    index = read_pipeline_index((tmp_path / "out" / PIPELINE_INDEX).read_text(), "index")
    assert [row["metric"] for row in index.scores] == ["joint accuracy", "abstained"]
    assert index.origin.weights_sha256 == made.weights_sha256 and index.data is not None and index.data.clips == 4
    assert not any("nothing was measured" in note for note in exported.notes)


def test_what_a_native_export_tells_is_told(made: Exported) -> None:
    for note in (
        "nothing was measured",
        "the codec was copied in",
        "names folders of this machine: run_dir, cache_dir",
    ):
        assert any(note in told for told in made.notes), note


def test_it_holds_what_the_pipeline_needs_and_no_more(made: Exported, base: Path) -> None:
    expected = {
        path.relative_to(base).as_posix()
        for name in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
        for path in (base / name).glob("*")
        if path.suffix != ".bin" and path.is_file()
    } | {"model_index.json", "LICENSE.txt", "README.md", "recipe.yaml", PIPELINE_INDEX}
    assert set(contents(made.path)) == set(made.files) == expected
    network = made.path / "transformer"
    assert str(base) not in (network / "config.json").read_text()
    assert len({path.stat().st_mode for path in network.iterdir()}) == 1


def test_a_base_of_the_hub_is_named_at_the_head(run: Path) -> None:
    with open_model(str(run)) as stored:
        model = stored.recipe.model.model_copy(update={"model": "owner/tiny-wan"})
        stored = replace(stored, recipe=stored.recipe.model_copy(update={"model": model}))
        card = write_pipeline_card(stored, Description(None, ()), [], {"base_model": "owner/its-own-base"})
    assert front_of(card)["base_model"] == "owner/tiny-wan" and "model `owner/tiny-wan`, trained further" in card


@pytest.mark.parametrize(
    "text", ["no front", "---\nlicense: [\n---\n", "---\n- license\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_strange_card_of_the_base_is_passed_over(base: Path, run: Path, tmp_path: Path, text: str) -> None:
    (base / "README.md").write_text(text)
    try:
        export_model(str(run), tmp_path / "out")
    finally:
        (base / "README.md").write_text(BASE_CARD)
    assert front_of((tmp_path / "out" / "README.md").read_text()).keys() == {"library_name", "pipeline_tag"}


# -- OUT


def test_an_earlier_pipeline_is_replaced_when_that_is_asked_for(out: Path, run: Path, tmp_path: Path) -> None:
    import diffusers

    before = contents(out)
    with pytest.raises(UsageError, match="an earlier export is there; name another OUT, or give --overwrite"):
        export_model(str(run), out)
    assert contents(out) == before
    (out / ".DS_Store").write_bytes(b"a file browser's")
    export_model(str(run), out, overwrite=True)
    assert contents(out) == before
    assert type(diffusers.DiffusionPipeline.from_pretrained(out)).__name__ == "WanPipeline"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("thesis.txt", "the folder holds thesis.txt"),
        ("transformer/mine.safetensors", "the folder holds transformer/mine.safetensors"),
        ("README.md", "its README.md was edited since"),
        ("scheduler/scheduler_config.json", "its scheduler/scheduler_config.json was edited since"),
        ("vae/diffusion_pytorch_model.safetensors", "its vae/diffusion_pytorch_model.safetensors was edited since"),
        (PIPELINE_INDEX, f"its {PIPELINE_INDEX} is not of an export, or damaged"),
    ],
)
def test_a_pipeline_that_was_added_to_or_edited_is_left(out: Path, run: Path, name: str, reason: str) -> None:
    (out / name).write_text("mine")
    before = contents(out)
    with pytest.raises(UsageError, match=f"{reason}.*only an earlier export is replaced"):
        export_model(str(run), out, overwrite=True)
    assert contents(out) == before


def test_weights_of_the_same_size_that_are_others_are_left(out: Path, run: Path) -> None:
    file = out / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UsageError, match="its vae/diffusion_pytorch_model.safetensors was edited since"):
        export_model(str(run), out, overwrite=True)


def test_a_pipeline_that_diffusers_wrote_is_left(base: Path, run: Path, tmp_path: Path) -> None:
    theirs = shutil.copytree(base, tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"its model_index\.json is not of an export"):
        export_model(str(run), theirs, overwrite=True)


def test_the_base_of_the_run_is_never_replaced(out: Path, run: Path, shapes_clips: Path, tmp_path: Path) -> None:
    """A run that goes on from a pipeline exported here, told to put its own in that place."""
    second = train_run(lora_recipe(tmp_path / "second", shapes_clips, {"type": "wan", "model": str(out)}, LORA))
    before = contents(out)
    with pytest.raises(UsageError, match="the base of this very run"):
        export_model(str(second), out, overwrite=True)
    assert contents(out) == before


def test_a_failed_export_leaves_the_old_one(
    out: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reelwright.export.pipeline.write_index", full)
    with pytest.raises(UserError, match="could not be written.*Nothing was changed"):
        export_model(str(run), out, overwrite=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline"]


def test_an_index_that_cannot_be_read_is_named(base: Path, run: Path, tmp_path: Path) -> None:
    index = base / "model_index.json"
    kept = index.read_text()
    try:
        for text in ("{", "[]"):
            index.write_text(text)
            with pytest.raises(UserError, match=r"model_index\.json: cannot be read"):
                export_model(str(run), tmp_path / "out")
    finally:
        index.write_text(kept)
    assert not (tmp_path / "out").exists()


def test_of_a_base_on_the_hub_its_terms_come_too(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """diffusers fetches a pipeline's components and leaves licence and card there."""
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda model, **_: str(base))
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda model, allow_patterns: asked.append((model, allow_patterns))
    )
    assert _pipeline_folder("someone/model") == base
    (model, patterns) = asked[0]
    fetched = [name for name in ("README.md", "LICENSE.txt", "LICENCE", "NOTICE", "x.safetensors", "model_index.json")
               if any(fnmatchcase(name, pattern) for pattern in patterns)]  # fmt: skip
    assert (model, fetched) == ("someone/model", ["README.md", "LICENSE.txt", "LICENCE", "NOTICE"])

    def down(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", down)
    with pytest.raises(
        UserError, match="model.model = someone/model: no folder here, and as a hub id cannot be loaded"
    ):
        _pipeline_folder("someone/model")
