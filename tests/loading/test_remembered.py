"""Which files a remembered fingerprint hangs on."""

from pathlib import Path

from reelwright.loading import remembered
from reelwright.recipe import Recipe


def test_files_behind_linked_folders_count(tmp_path: Path) -> None:
    pipeline, encoder = tmp_path / "pipeline", tmp_path / "t5"
    for folder in (pipeline, encoder):
        folder.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    (encoder / "model.safetensors").write_bytes(b"weights")
    (pipeline / "text_encoder").symlink_to(encoder)
    (encoder / "up").symlink_to(pipeline)
    recipe = Recipe.parse(
        {
            "run_dir": "r",
            "cache_dir": str(tmp_path),
            "data": {"path": "d"},
            "text": {"type": "t5", "model": str(pipeline)},
        }
    )
    names = {path.name for path in remembered._files(recipe, "text")}
    assert names == {"model_index.json", "model.safetensors"}
    told = []
    for content in (b"weights", b"others!"):
        (encoder / "model.safetensors").write_bytes(content)
        told.append(remembered.remembered(recipe, "text", lambda: content.hex()))  # noqa: B023
    assert told == [b"weights".hex(), b"others!".hex()]
