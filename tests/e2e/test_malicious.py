"""Fault row 15: models made to run code, to read elsewhere, to eat memory. Nothing runs; one message; exit 1 or 2."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from reelwright.export import export_model
from reelwright.models.exported import METADATA_KEY, seal
from tiny_models import tiny_recipe, write_run


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, to be made malicious."""
    run = write_run(tiny_recipe(tmp_path), steps=(10,))
    export_model(str(run.path), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def refused(run_cli: Any, tmp_path: Path, marker: Path) -> Callable[..., str]:
    """`refused(model)`: generate refuses it by one message, which is returned, and nothing has run."""

    def check(model: Path, *also: str) -> str:
        told = run_cli("generate", model, "--prompt", "x", "--steps", "1", "--out", tmp_path / "x.mp4")
        assert told.code in (1, 2), told
        assert "Traceback" not in told.err and "unexpected failure" not in told.err, told.err
        assert not marker.exists(), "it ran"
        assert not (tmp_path / "x.mp4").exists()
        for text in also:
            assert text in told.err, told.err
        return told.err

    return check


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None, hashes: bool = True) -> None:
    """Make the index vouch for what an attacker put there."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    if hashes:
        for name in index["files"]:
            data = (folder / name).read_bytes()
            index["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(index)
    name = index.pop("_class_name", None)
    index.pop("sha256", None)
    path.write_text(json.dumps({**({} if name is None else {"_class_name": name}), **index, "sha256": seal(index)}))


def test_the_helper_makes_an_export_that_loads(folder: Path, run_cli: Any, tmp_path: Path) -> None:
    """What the others refuse, they refuse for its malice and not for a mistake of `reseal`."""
    reseal(folder)
    assert run_cli("generate", folder, "--prompt", "x", "--steps", "1", "--out", tmp_path / "y.mp4").code == 0


# -- the index


@pytest.mark.parametrize("name", ["os.system", "posix.system", "DiffusionPipeline", "__main__.Payload", None, 7, ["x"]])
def test_a_foreign_class_name(folder: Path, refused: Any, name: Any) -> None:
    reseal(folder, lambda index: index.update(_class_name=name))
    refused(folder, "model_index.json", "not 'ReelwrightModel'")


@pytest.mark.parametrize("part", ["denoiser", "text", "codec"])
@pytest.mark.parametrize(
    "named", [["os", "system"], ["builtins", "eval"], ["reelwright", "os.system"], ["diffusers", "UNet2DModel"]]
)
def test_a_foreign_class_for_a_part(folder: Path, refused: Any, part: str, named: list[str]) -> None:
    reseal(folder, lambda index: index.update({part: named}))
    refused(folder, str(folder), f"{part} = {named}", "nothing was built")


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"custom_pipeline": "evil"},
        {"text": ["reelwright"]},
        {"text": {"__reduce__": "os.system"}},
        {"files": {}},
        {"files": None},
        {"origin": "os.system"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_keys_and_values_that_do_not_belong(folder: Path, refused: Any, change: dict[str, Any]) -> None:
    (folder / "evil.py").write_text("import os; os.system('touch it-ran')")
    reseal(folder, lambda index: index.update(change))
    refused(folder, "model_index.json", next(iter(change)))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version(folder: Path, refused: Any, version: Any) -> None:
    reseal(folder, lambda index: index.update(format_version=version))
    refused(folder, "format_version")


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, '{"_class_name": ' + "[" * 100_000, "\x00", '"x"', "7"]
)
def test_an_index_that_is_none(folder: Path, refused: Any, text: str) -> None:
    (folder / "model_index.json").write_text(text)
    refused(folder, "model_index.json")


def test_an_index_without_end(folder: Path, refused: Any) -> None:
    with (folder / "model_index.json").open("wb") as file:
        file.truncate(1 << 33)  # 8 GiB of nothing
    refused(folder, "model_index.json", "larger than")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json", "/etc/passwd", "text/../../outside.json", "text/..", "..", ".", "", "text\\..\\x.json",
        "text/x/../tokenizer.json", "evil.py", "text/evil.py", "text/pytorch_model.bin", "text/adapter_config.json",
        "text/tokenizer.json\x00", "~/x.json", "//x.json", "file:///etc/passwd", "text/model.safetensors.index.json",
    ],
)  # fmt: skip
def test_file_names_that_lead_elsewhere(folder: Path, refused: Any, name: str) -> None:
    (folder.parent / "outside.json").write_text("{}")
    reseal(folder, lambda index: index["files"].update({name: {"bytes": 2, "sha256": "0" * 64}}), hashes=False)
    refused(folder, "model_index.json", "not the name of a file of an exported model")


@pytest.mark.parametrize("name", ["text/tokenizer.json", "denoiser/model.safetensors", "text"])
def test_links_that_lead_out(folder: Path, refused: Any, name: str) -> None:
    inside, outside = folder / name, folder.parent / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    refused(folder, str(inside), "leads out")


def test_a_fifo_does_not_hang(folder: Path, refused: Any) -> None:
    (folder / "text" / "tokenizer.json").unlink()
    os.mkfifo(folder / "text" / "tokenizer.json")
    refused(folder, "tokenizer.json")


@pytest.mark.parametrize("name", ["text/evil.py", "text/adapter_config.json", "codec/pytorch_model.bin"])
def test_a_file_that_a_library_might_read_unasked(folder: Path, refused: Any, name: str) -> None:
    (folder / name).write_text("import os")
    refused(folder, name, "not in model_index.json")


# -- weights


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def torch_zip(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": Payload(marker)}, stream)
    assert zipfile.is_zipfile(stream)
    return stream.getvalue()


def legacy_torch(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": Payload(marker)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_the_payload_is_one(marker: Path) -> None:
    pickle.loads(pickled(marker))  # noqa: S301
    assert marker.exists()


@pytest.mark.parametrize("part", ["denoiser", "text", "codec"])
@pytest.mark.parametrize("make", [pickled, torch_zip, legacy_torch])
def test_a_pickle_named_safetensors(folder: Path, refused: Any, marker: Path, part: str, make: Any) -> None:
    (folder / part / "model.safetensors").write_bytes(make(marker))
    reseal(folder)
    refused(folder, f"{part}/model.safetensors", "a pickle under another name")
    alone = folder.parent / "alone.safetensors"
    alone.write_bytes(make(marker))
    refused(alone, "alone.safetensors", "a pickle under another name")


@pytest.mark.parametrize("name", ["ema", "codec"])
@pytest.mark.parametrize("make", [pickled, torch_zip])
def test_a_pickle_in_a_checkpoint(tmp_path: Path, refused: Any, marker: Path, name: str, make: Any) -> None:
    from reelwright.training import checkpoint as checkpoints

    path = write_run(tiny_recipe(tmp_path), steps=(10,)).checkpoints / "step-0000010"
    (path / f"{name}.safetensors").write_bytes(make(marker))
    refused(path, f"{name}.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"][f"{name}.safetensors"] = checkpoints._file_entry(path / f"{name}.safetensors")
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": checkpoints._seal(manifest)}))
    refused(path, str(path))


def header_of(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00", header_of(b"{}", 1 << 62), header_of(b"{}", (1 << 64) - 1), header_of(b"{}", 99_000_000),
        header_of(b"{" * 100_000), header_of(b"[" * 5_000_000),
        header_of(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}') + b"\x00" * 16,
        header_of(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}') + b"\x00" * 16,
        header_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}') + b"\x00" * 16,
        header_of(b'{"a":{"dtype":"OBJECT","shape":[2],"data_offsets":[0,8]}}') + b"\x00" * 8,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ],
    ids=[
        "empty", "byte", "2^62", "2^64", "99MB", "braces", "brackets", "4TB", "overflow", "negative", "object", "lfs",
    ],
)  # fmt: skip
def test_headers_that_lie(folder: Path, refused: Any, data: bytes) -> None:
    (folder / "denoiser" / "model.safetensors").write_bytes(data)
    reseal(folder)
    refused(folder, "denoiser/model.safetensors")
    alone = folder.parent / "alone.safetensors"
    alone.write_bytes(data)
    refused(alone, "alone.safetensors")


@pytest.mark.parametrize("part", ["denoiser", "text", "codec"])
@pytest.mark.parametrize("how", ["missing", "extra", "shape", "all"])
def test_tensors_that_do_not_fit(folder: Path, refused: Any, part: str, how: str) -> None:
    path = folder / part / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    changed = {
        "missing": {key: value for key, value in tensors.items() if key != name},
        "extra": {**tensors, "__class__": torch.zeros(1)},
        "shape": {**tensors, name: torch.zeros(3)},
        "all": {},
    }[how]
    save_file(changed, path)
    reseal(folder)
    refused(folder, f"{part}/model.safetensors", "__class__" if how == "extra" else name if how == "shape" else "")


# -- texts


@pytest.mark.parametrize(
    "text",
    [
        "run_dir: !!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:subprocess.check_output [[touch, '{marker}']]",
        "seed: !!python/object/new:os.system ['touch {marker}']",
        "data: !!python/name:os.system",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
        "seed: " + "[" * 20_000,
        "x: " + "y" * 2_000_000,
        "- a list",
        "\x00",
    ],
    ids=["apply", "top", "new", "name", "bomb", "deep", "long", "list", "nul"],
)  # fmt: skip
def test_a_recipe_that_is_more_than_settings(folder: Path, refused: Any, marker: Path, text: str) -> None:
    text = text.replace("{marker}", str(marker))
    (folder / "recipe.yaml").write_text(text)
    reseal(folder)
    refused(folder, "recipe.yaml")
    refused(one_file(folder, {"recipe.yaml": text}), "recipe.yaml")


def one_file(folder: Path, changes: dict[str, str]) -> Path:
    """The one-file form of an export, its texts changed and vouched for."""
    source, out = folder.parent / "model.safetensors", folder.parent / "changed.safetensors"
    if not source.exists():
        export_model(str(folder.parent / "run"), source, "safetensors")
    with safe_open(source, framework="pt") as file:
        index = json.loads(file.metadata()[METADATA_KEY])
    index["texts"].update(changes)
    for name, text in changes.items():
        index["files"][name] = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    del index["sha256"]
    name = index.pop("_class_name")
    metadata = {METADATA_KEY: json.dumps({"_class_name": name, **index, "sha256": seal(index)})}
    out.write_bytes(save(load_file(source), metadata=metadata))
    return out


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[]", "\x80\x04", '{"model": {"type": "os.system"}}', "[" * 100_000, '{"version": "1.0"}'],
    ids=["empty", "object", "null", "list", "pickle", "type", "deep", "version"],
)
def test_a_tokenizer_that_is_none(folder: Path, refused: Any, text: str) -> None:
    (folder / "text" / "tokenizer.json").write_text(text)
    reseal(folder)
    refused(folder, "text/tokenizer.json", "not a tokenizer's JSON")
    refused(one_file(folder, {"text/tokenizer.json": text}), "not a tokenizer's JSON")


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "text/evil.py", "text/../../x.json"])
def test_texts_of_the_one_file_lead_nowhere(folder: Path, refused: Any, name: str) -> None:
    refused(one_file(folder, {name: "import os"}), "not the name of a file of an exported model")


def test_a_frozen_part_with_code_of_its_own(folder: Path, refused: Any, marker: Path) -> None:
    """The recipe asks for CLIP; its folder asks the library to run a file that lies beside it."""
    recipe = (folder / "recipe.yaml").read_text()
    start, end = recipe.index("text:\n"), recipe.index("model:\n")
    recipe = recipe[:start] + "text: {type: clip, model: x, length: 8}\n" + recipe[end:]
    (folder / "recipe.yaml").write_text(recipe)
    map_ = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None], "CLIPTextModel": "evil.Model"}
    config = json.dumps({"model_type": "evil", "auto_map": map_, "architectures": ["evil.Model"]})
    (folder / "text" / "tokenizer.json").unlink()
    (folder / "text" / "config.json").write_text(config)
    (folder / "text" / "tokenizer_config.json").write_text(config)
    (folder / "text" / "evil.py").write_text(f"import os\nos.system('touch {marker}')\n")

    def change(index: dict[str, Any]) -> None:
        index["text"] = ["reelwright", "CLIPText"]
        del index["files"]["text/tokenizer.json"]
        for name in ("text/config.json", "text/tokenizer_config.json"):
            data = (folder / name).read_bytes()
            index["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        data = recipe.encode()
        index["files"]["recipe.yaml"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    reseal(folder, change, hashes=False)
    refused(folder, "text/evil.py", "not in model_index.json")
    (folder / "text" / "evil.py").rename(folder / "evil.py")
    refused(folder, "text.model")
    config = config.replace('"model_type": "evil"', '"model_type": "clip_text_model"')
    for name in ("config.json", "tokenizer_config.json"):
        (folder / "text" / name).write_text(config)
    reseal(folder)
    refused(folder, "text.model")
