"""A folder of clips, or a recipe -> what would be trained on, what not, and why: the report, and a page of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reelwright.config import apply_override
from reelwright.data.config import DataConfig
from reelwright.data.decode import BadVideo, read_window
from reelwright.data.inspection import Inspection, inspect
from reelwright.recipe import Recipe
from reelwright.report.inspection_page import write_inspection_page
from reelwright.types import Size, UsageError

THUMBNAIL_FRAMES, THUMBNAIL_SIDE = 4, 72

Progress = Callable[[str, int, int], None]


def inspect_data(config: DataConfig, progress: Progress) -> Inspection:
    """List, decode and sort the whole collection. Writes nothing."""
    return inspect(config, progress=lambda done, total, _: progress("inspecting", done, total))


def data_config(data: Path, overrides: Sequence[str]) -> DataConfig:
    """What a recipe says of its data, or a folder under the default settings.

    Overrides of a folder are those of a recipe's data group, with or without its name: `data.frames=8`, `frames=8`.
    UsageError where `data` is neither a recipe nor a folder.
    """
    if data.is_dir():
        values: dict[str, object] = {"path": str(data)}
        for override in overrides:
            apply_override(values, override.removeprefix("data."))
        return DataConfig.parse(values, origin=str(data))
    if data.suffix in (".yaml", ".yml"):
        return Recipe.load(data, overrides).data
    raise UsageError(f"{data}: neither a folder of captioned clips nor a recipe (*.yaml)")


def write_page(inspection: Inspection, fps: float, path: Path, progress: Progress) -> None:
    """A self-contained HTML page with a strip of frames of every clip that is used."""
    facts = inspection.to_json()
    first_windows = [sample for sample in inspection.samples if sample.window == 0]
    thumbnails: dict[str, bytes] = {}
    for number, sample in enumerate(first_windows, start=1):
        size = Size(min(THUMBNAIL_FRAMES, sample.size.frames), THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        # spread over the window the sample takes
        slower = fps * (size.frames - 1) / max(1, sample.size.frames - 1) if size.frames > 1 else fps
        try:
            frames = read_window(sample.clip.video, size, slower, sample.start_seconds, inspection.info(sample))
        except BadVideo:
            continue  # the page shows the clip without a picture; preparing names the reason
        thumbnails[sample.clip.id] = _png(np.concatenate(list(frames), axis=1))
        progress("thumbnails", number, len(first_windows))
    used = [
        {
            "id": sample["clip"], "status": "used", "split": sample["split"], "captions": sample["captions"],
            **{key: sample["video"][key] for key in ("frames", "fps", "width", "height")},
        }
        for sample in facts["samples"] if sample["window"] == 0
    ]  # fmt: skip
    write_inspection_page({**facts, "clips": used}, thumbnails, path)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
