"""No name from a page leads out of the workspace, and what is in it is listed as it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from reelwright.types import UsageError, UserError
from reelwright.ui.admission import HUB_ID, admit
from reelwright.ui.workspace import Workspace
from reelwright.video.write import write_video

KINDS = ("model", "run", "recipe", "video", "data", "file", "folder", "any")
NAMES = {"model": "run", "run": "run", "recipe": "recipe.yaml", "video": "clip.mp4", "data": "data", "file": "clip.mp4",
         "folder": "data", "any": "clip.mp4"}  # fmt: skip


def payloads(outside: Path, name: str) -> list[str]:
    """Ways to say `outside/name`, the sibling of the workspace, or some file of the system."""
    target = f"{outside}/{name}"
    up = f"../{outside.name}/{name}"
    return [
        target, f"/{target}", f"//localhost{target}", up, f"./{up}", f"data/../{up}",
        f"runs/../../{outside.name}/{name}",
        f"data/./../{up}", f"{up}/", f"..//{outside.name}//{name}", f"data//../..//{outside.name}/{name}",
        up.replace("/", "\\"), f"..\\{outside.name}\\{name}", f"..\\/{outside.name}/{name}",
        target.replace("/", "\\"),
        f"C:{target}", f"C:\\{name}", "C:/Windows/win.ini", f"\\\\server\\share\\{name}", f"//server/share/{name}",
        f"\\\\?\\C:\\{name}", "\\\\.\\PhysicalDrive0",
        f"file://{target}", f"file:{target}", f"FILE://{target}", f"http://127.0.0.1/{name}", f"https://host/{name}",
        f"ftp://host/{name}", f"s3://bucket/{name}", f"data:video/mp4;base64,{name}", f"concat:{target}|{target}",
        f"subfile,,start,0,end,9,,:{target}", "pipe:0", f"hf://org/{name}", "javascript:alert(1)",
        "~", f"~/{name}", f"~root/{name}", f"data/~/{name}", f"~+/{name}", f"~{target}",
        up.replace("/", "%2f"), up.replace(".", "%2e"), f"%2e%2e/{outside.name}/{name}",
        f"..%2f{outside.name}%2F{name}",
        f"..%252f{outside.name}%252f{name}", f"%c0%ae%c0%ae/{name}", f"..%c0%af{name}", f"..%5c{name}", "%00",
        f"{up}\0", f"\0{up}", f"{up}\0.mp4", f"data\0/../{up}", f"{up}\n", f"\n{up}", f"{up}\r\n.mp4",
        f"\t{up}", f" {up}",
        f"\uff0e\uff0e/{outside.name}/{name}", f"..\uff0f{outside.name}\uff0f{name}", f"\u2025/{outside.name}/{name}",
        f"\u202e{up}", f"\u2066{up}", f"\ufeff{up}", f"\ud800/{name}",
        "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/environ", "/proc/self/cwd/../x",
        "/proc/self/root/etc/passwd",
        "CON", "nul", "aux.txt", "COM1", "lpt9.mp4", "data/PRN", "CONIN$",
        ".", "..", "...", "/", "", " ", "./", "../", ".reelwright/lock", "data/.hidden", ".git/config",
        "./.reelwright/jobs",
        "a" * 300, "a/" * 200 + "b", "\u00e9" * 150, "x" * 5000, "clip.mp4:stream", "clip.mp4::$DATA",
    ]  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path, trained_run: Path, shapes_clips: Path) -> Path:
    """What must not be reached, good enough to be used if it were: a run, a recipe, a video, a folder of clips."""
    folder = tmp_path / "outside"
    folder.mkdir()
    shutil.copytree(trained_run, folder / "run")
    shutil.copytree(shapes_clips, folder / "data")
    shutil.copy(folder / "run" / "recipe.yaml", folder / "recipe.yaml")
    write_video(folder / "clip.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, outside: Path, write_recipe) -> Workspace:
    """The same things inside, so that only the name decides."""
    root = tmp_path / "root"
    shutil.copytree(outside / "run", root / "runs" / "first")
    shutil.copytree(outside / "data", root / "data")
    shutil.copy(outside / "clip.mp4", root / "clip.mp4")
    settings = ("run_dir=runs/new", "cache_dir=cache", "data.path=data")
    shutil.move(write_recipe(*settings, folder=tmp_path / "made"), root / "recipe.yaml")
    return Workspace(root)


def names_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_plain_names_resolve(workspace: Workspace) -> None:
    root = workspace.root
    assert workspace.resolve("runs/first", "model") == root / "runs" / "first"
    assert workspace.resolve("./runs/first/", "run") == root / "runs" / "first"
    assert workspace.resolve("recipe.yaml", "recipe") == root / "recipe.yaml"
    assert workspace.resolve("clip.mp4", "video") == root / "clip.mp4"
    assert workspace.resolve("data", "data") == root / "data"
    assert workspace.resolve("runs/not yet \u00fc \u732b", "folder") == root / "runs" / "not yet \u00fc \u732b"
    assert workspace.relative(root / "runs" / "first") == "runs/first"


@pytest.mark.parametrize("kind", KINDS)
def test_no_payload_escapes_resolve(workspace: Workspace, outside: Path, kind: str) -> None:
    tried = payloads(outside, NAMES[kind])
    assert len(set(tried)) >= 90
    for payload in tried:
        with pytest.raises(UsageError) as error:
            workspace.resolve(payload, kind, "the field")  # type: ignore[arg-type]
        assert str(error.value).startswith("the field"), payload
        assert "\0" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, 3, b"data", ["data"], {"path": "data"}, Path("data")])
def test_only_text_is_a_name(workspace: Workspace, value: object) -> None:
    with pytest.raises(UsageError, match="a name is text"):
        workspace.resolve(value, "data")  # type: ignore[arg-type]


# Every path-like field of every kind of request, with the thing of the outside that it would take
FIELDS = [
    ("generate", "model", "run", {"prompt": "p"}),
    ("refine", "model", "run", {"prompt": "p", "video": "clip.mp4"}),
    ("refine", "video", "clip.mp4", {"prompt": "p", "model": "runs/first"}),
    ("noise", "model", "run", {"video": "clip.mp4"}),
    ("noise", "video", "clip.mp4", {"model": "runs/first"}),
    ("inspect", "data", "data", {}),
    ("inspect", "data", "recipe.yaml", {}),
    ("prepare", "recipe", "recipe.yaml", {}),
    ("train", "recipe", "recipe.yaml", {}),
    ("train", "fork", "run", {"recipe": "recipe.yaml"}),
    ("evaluate", "model", "run", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "field", "name", "rest"), FIELDS)
def test_no_payload_escapes_a_request(workspace, outside, kind, field, name, rest) -> None:
    before, inside = names_of(outside), names_of(workspace.root)
    for payload in payloads(outside, name):
        with pytest.raises(UsageError):
            admit(workspace, kind, {**rest, field: payload})
    assert names_of(outside) == before and names_of(workspace.root) == inside


@pytest.mark.parametrize("key", ["run_dir", "cache_dir", "data.path", "data.videos", "data.captions", "data.only"])
def test_no_payload_escapes_a_recipe(workspace, outside, key) -> None:
    for payload in payloads(outside, "data"):
        for kind in ("train", "prepare"):
            with pytest.raises(UsageError):
                admit(workspace, kind, {"recipe": "recipe.yaml", "changes": {key: payload}})


@pytest.mark.parametrize(
    ("group", "type_"),
    [("codec", "autoencoder_kl"), ("codec", "video_autoencoder"), ("text", "clip"), ("text", "t5"), ("model", "wan")],
)
def test_no_payload_escapes_a_foreign_model(workspace, outside, group, type_) -> None:
    fields = [f"{group}.model", f"{group}.subfolder"] + ([f"{group}.tokenizer_subfolder"] if group == "text" else [])
    for field in fields:
        for payload in payloads(outside, "data"):
            if field.endswith("subfolder") and payload == "":
                continue  # the folder itself
            if field.endswith(".model") and HUB_ID.fullmatch(payload):
                assert not payload.startswith((".", "/", "~")) and ".." not in payload  # no way out of where it is
                continue
            changes = {f"{group}.type": type_, f"{group}.model": "owner/name", field: payload}
            with pytest.raises(UsageError):
                admit(workspace, "train", {"recipe": "recipe.yaml", "changes": changes})


def test_recipe_on_disk_may_not_lead_out_either(workspace: Workspace, outside: Path) -> None:
    text = (workspace.root / "recipe.yaml").read_text()
    for path in (outside / "data", "../outside/data"):
        (workspace.root / "bad.yaml").write_text(text.replace("path: data", f"path: {path}"))
        with pytest.raises(UsageError, match="data.path"):
            admit(workspace, "train", {"recipe": "bad.yaml"})
    (workspace.root / "good.yaml").write_text(text.replace("path: data", f"path: {workspace.root}/data"))
    admit(workspace, "train", {"recipe": "good.yaml"})


LINKS = {
    "to a folder": ("link", ""),
    "to a file": ("link.mp4", "clip.mp4"),
    "to a recipe": ("link.yaml", "recipe.yaml"),
    "to a run": ("runs/link", "run"),
}


@pytest.mark.parametrize("what", LINKS)
def test_symlinks_that_lead_out_are_refused(workspace: Workspace, outside: Path, what: str) -> None:
    name, target = LINKS[what]
    (workspace.root / name).symlink_to(outside / target)
    (workspace.root / "hop").symlink_to(workspace.root / name)
    below = {"to a folder": "data", "to a run": "recipe.yaml"}.get(what)
    for text in (name, "hop", *((f"{name}/{below}", f"hop/{below}") if below else ())):
        for kind in KINDS:
            with pytest.raises(UsageError, match="leads out of the workspace|not a|hold"):
                workspace.resolve(text, kind)  # type: ignore[arg-type]
    for kind, field, _, rest in FIELDS:
        with pytest.raises(UsageError):
            admit(workspace, kind, {**rest, field: name})


def test_symlinks_inside_a_thing_are_found(workspace: Workspace, outside: Path) -> None:
    (workspace.root / "data" / "videos" / "stolen.mp4").symlink_to(outside / "clip.mp4")
    with pytest.raises(UsageError, match=r"data = 'data'|leads out"):
        admit(workspace, "inspect", {"data": "data"})
    with pytest.raises(UsageError, match="leads out"):
        admit(workspace, "train", {"recipe": "recipe.yaml"})
    run = workspace.root / "runs" / "first"
    shutil.rmtree(run / "samples", ignore_errors=True)
    (run / "samples").symlink_to(outside)
    for kind in ("generate", "evaluate"):
        with pytest.raises(UsageError, match="leads out"):
            admit(workspace, kind, {"model": "runs/first", **({"prompt": "p"} if kind == "generate" else {})})


def test_symlinks_within_the_workspace_are_followed(workspace: Workspace) -> None:
    (workspace.root / "alias").symlink_to(workspace.root / "data")
    assert workspace.resolve("alias", "data") == workspace.root / "data"
    (workspace.root / "loop").symlink_to(workspace.root / "loop")
    (workspace.root / "self").symlink_to(workspace.root)
    (workspace.root / "jobs").symlink_to(workspace.root / ".reelwright")
    for name in ("loop", "jobs", "jobs/incoming", "self/.reelwright"):
        with pytest.raises(UsageError):
            workspace.resolve(name, "any")
    assert workspace.check_tree(workspace.root / "data", "data")  # ends although `self` is a circle
    with pytest.raises(UsageError, match="cannot be followed|leads|belongs"):
        workspace.check_tree(workspace.root, "all")


def test_a_link_put_in_after_the_check_is_seen_at_the_next(workspace: Workspace, outside: Path) -> None:
    assert workspace.resolve("clip.mp4", "video")
    (workspace.root / "clip.mp4").unlink()
    (workspace.root / "clip.mp4").symlink_to(outside / "clip.mp4")
    with pytest.raises(UsageError, match="leads out"):
        workspace.resolve("clip.mp4", "video")


def test_special_files_are_refused(workspace: Workspace) -> None:
    os.mkfifo(workspace.root / "pipe.mp4")
    for kind in KINDS:
        with pytest.raises(UsageError, match="neither a regular file nor a folder"):
            workspace.resolve("pipe.mp4", kind)  # type: ignore[arg-type]


def test_output_folder_that_leads_out_is_refused(workspace: Workspace, outside: Path) -> None:
    (workspace.root / "outputs").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out"):
        workspace.made_folder("outputs")
    assert workspace.outputs() == []


def test_private_folder_that_is_a_link_is_refused(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "fresh"
    root.mkdir()
    (root / ".reelwright").symlink_to(outside)
    with pytest.raises(UsageError, match="remove it"):
        Workspace(root)
    assert not (outside / "incoming").exists()


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_workspace_must_be_a_folder(tmp_path: Path, what: str) -> None:
    path = tmp_path / "root"
    if what == "a file":
        path.write_text("")
    with pytest.raises(UsageError, match="--workspace"):
        Workspace(path)


def test_what_is_there(workspace: Workspace, outside: Path) -> None:
    root = workspace.root
    (root / "runs" / "linked").symlink_to(outside / "run")
    (root / "notes.yaml").write_text("just: text\n")
    (root / "broken-recipe.yaml").write_text("run_dir: [\n")
    (run,) = workspace.runs()
    assert (run.name, run.step, run.total_steps, run.problem) == ("runs/first", 8, 8, "")
    assert run.defaults == {"sampler": "euler", "steps": 3, "guidance": 4.0, "frames": 8, "width": 32, "height": 32,
                            "fps": 8.0}  # fmt: skip
    assert [entry.name for entry in workspace.models() if entry.kind != "starter"] == ["runs/first"]
    recipes = {entry.name: entry for entry in workspace.recipes()}
    assert set(recipes) == {"recipe.yaml", "broken-recipe.yaml"}
    assert recipes["recipe.yaml"].run_dir == "runs/new" and not recipes["recipe.yaml"].problem
    assert "YAML" in recipes["broken-recipe.yaml"].problem
    (data,) = workspace.data_folders()
    assert (data.name, data.videos, data.captions) == ("data", 24, "captions.json")


def test_damaged_things_are_listed_with_their_problem(workspace: Workspace) -> None:
    (workspace.root / "runs" / "first" / "recipe.yaml").write_text("run_dir: x\nnonsense: 1\n")
    (run,) = workspace.runs()
    assert "nonsense" in run.problem and run.defaults == {}


def test_outputs_newest_first_with_their_recipes(workspace: Workspace) -> None:
    outputs = workspace.made_folder("outputs")
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    for age, name in enumerate(("new.mp4", "old.gif", "bare.webm")):
        write_video(outputs / name, frames, 8, {"prompt": f"<script>{name}"} if age < 2 else None)
        os.utime(outputs / name, (1000 - age, 1000 - age))
    (outputs / "bare.webm.json").write_text("[1]")
    (outputs / "leak.mp4").symlink_to(workspace.root / "clip.mp4")
    entries = workspace.outputs()
    assert [entry.name for entry in entries] == ["outputs/new.mp4", "outputs/old.gif", "outputs/bare.webm"]
    assert [entry.recipe.get("prompt") for entry in entries] == ["<script>new.mp4", "<script>old.gif", None]
    assert len(workspace.outputs(limit=1)) == 1


def test_exported_models_are_listed_and_their_recipes_checked(workspace: Workspace, outside: Path) -> None:
    from safetensors.numpy import save_file

    from reelwright.export import export_model

    root = workspace.root
    export_model(str(root / "runs" / "first"), root / "exports" / "folder")
    export_model(str(root / "runs" / "first"), root / "exports" / "file.safetensors", "safetensors")
    save_file({"x": np.zeros(3)}, root / "exports" / "other.safetensors")
    models = {entry.name: entry for entry in workspace.models()}
    for name in ("exports/folder", "exports/file.safetensors"):
        assert models[name].kind == "export" and models[name].defaults["frames"] == 8 and not models[name].problem
        admit(workspace, "generate", {"model": name, "prompt": "p"})
    assert "exports/other.safetensors" not in models
    recipe = root / "exports" / "folder" / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text())
    values["text"] = {"type": "clip", "model": str(outside / "data")}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match="text.model"):
        admit(workspace, "generate", {"model": "exports/folder", "prompt": "p"})
    (root / "exports" / "folder" / "text" / "config.json").write_text("{}")  # the part lies in the export
    admit(workspace, "generate", {"model": "exports/folder", "prompt": "p"})


def test_a_checkpoints_own_recipe_is_checked(workspace: Workspace, outside: Path) -> None:
    (recipe, *_) = sorted((workspace.root / "runs" / "first" / "checkpoints").glob("*/recipe.yaml"))
    values = yaml.safe_load(recipe.read_text())
    values["codec"] = {"type": "autoencoder_kl", "model": "org/name", "subfolder": str(outside / "data")}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match="codec.subfolder"):
        admit(workspace, "generate", {"model": "runs/first", "prompt": "p"})


# Uploads


def arrived(workspace: Workspace, content: bytes | Path) -> Path:
    path = workspace.upload_folder / "arrived"
    path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    return path


def test_upload_is_stored_under_a_new_safe_name(workspace: Workspace, outside: Path) -> None:
    clip = outside / "clip.mp4"
    first = workspace.store_upload(arrived(workspace, clip), "My Holiday (1).MP4")
    second = workspace.store_upload(arrived(workspace, clip), "My Holiday (1).MP4")
    assert first != second and first.read_bytes() == second.read_bytes() == clip.read_bytes()
    assert first.parent == workspace.root / "uploads" and first.name.startswith("my-holiday-1-")
    assert workspace.resolve(workspace.relative(first), "video") == first
    assert not list(first.parent.glob(".*"))


def test_upload_names_never_lead_out(workspace: Workspace, outside: Path) -> None:
    before = names_of(outside)
    tried = [payload for payload in payloads(outside, "clip") if not payload.endswith(("/", "\\"))]
    for number, payload in enumerate(tried[::8]):
        stored = workspace.store_upload(arrived(workspace, outside / "clip.mp4"), f"{payload}.mp4")
        assert stored.parent == workspace.root / "uploads", payload
        assert len(list(stored.parent.iterdir())) == number + 1
        assert workspace.resolve(workspace.relative(stored), "video") == stored
    assert names_of(outside) == before


@pytest.mark.parametrize("name", ["x.exe", "x", "x.mp4.sh", "x.html", ".mp4/x", "", "x.m3u8", "x.svg", "x.mp4\0.php"])
def test_upload_of_other_suffixes_is_refused(workspace: Workspace, outside: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a video file"):
        workspace.store_upload(arrived(workspace, outside / "clip.mp4"), name)


@pytest.mark.parametrize(
    "content",
    [b"", b"<script>alert(1)</script>", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"\0" * 1000, b"ffconcat version 1.0\n",
     b"\x89PNG\r\n\x1a\n" + b"\0" * 100],
)  # fmt: skip
def test_upload_that_is_no_video_is_refused(workspace: Workspace, content: bytes) -> None:
    with pytest.raises(UsageError, match="upload 'x.mp4': "):
        workspace.store_upload(arrived(workspace, content), "x.mp4")
    assert not list((workspace.root / "uploads").iterdir())


def test_upload_too_large_is_refused(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "small").mkdir()
    workspace = Workspace(tmp_path / "small", max_upload_bytes=100)
    with pytest.raises(UsageError, match="larger than"):
        workspace.store_upload(arrived(workspace, outside / "clip.mp4"), "x.mp4")
    assert not list((workspace.root / "uploads").iterdir())


def test_upload_from_elsewhere_is_refused(workspace: Workspace, outside: Path) -> None:
    link = workspace.upload_folder / "link.mp4"
    link.symlink_to(outside / "clip.mp4")
    for path in (outside / "clip.mp4", link, workspace.root / "clip.mp4", workspace.upload_folder / ".." / "lock"):
        with pytest.raises(UsageError, match="did not arrive"):
            workspace.store_upload(path, "x.mp4")


def test_reading_is_bounded(workspace: Workspace, outside: Path) -> None:
    (workspace.root / "secret.json").symlink_to(outside / "recipe.yaml")
    (workspace.root / "large.json").write_text(json.dumps("x" * 2000))
    os.mkfifo(workspace.root / "pipe.json")
    for name in ("secret.json", "large.json", "pipe.json", "none.json"):
        with pytest.raises(UserError):
            workspace.read_text(workspace.root / name, max_bytes=1000)
