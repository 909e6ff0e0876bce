"""Settings of the data: sensible defaults, and every mistake said in words."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from reelwright.data.config import DataConfig, SourceFormat
from reelwright.data.sources import FORMATS
from reelwright.types import Size, UsageError


def test_one_size_or_buckets() -> None:
    assert DataConfig.parse({"path": "x"}).sizes == (Size(16, 64, 64),)
    buckets = [[16, 64, 64], [8, 64, 96]]
    config = DataConfig.parse({"path": "x", "buckets": buckets})
    assert config.sizes == (Size(16, 64, 64), Size(8, 64, 96))
    assert DataConfig.parse(config.plain()) == config
    auto = DataConfig.parse({"path": "x", "buckets": "auto", "height": 32})
    assert auto.sizes == (Size(16, 32, 64),), "until they are derived, the one size"
    assert DataConfig.parse(auto.plain()) == auto


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frame": 8}, "unknown key 'frame'.*'frames'"),
        ({"frames": 0}, "frames = 0"),
        ({"fps": -1}, "fps = -1"),
        ({"fps": float("nan")}, "fps = nan"),
        ({"window": "tail"}, "window = 'tail'.*'head'"),
        ({"windows": 2}, "windows = 2 needs window = uniform"),
        ({"windows": 2, "window": "spread"}, "windows = 2 needs window = uniform"),
        ({"buckets": "every"}, "buckets"),
        ({"buckets": "auto", "height": 8}, "at least bucket_multiple = 16"),
        ({"scene_cuts": 0}, "scene_cuts = 0"),
        ({"scene_cuts": 300}, "scene_cuts = 300"),
        ({"flagged": "maybe"}, "flagged = 'maybe'.*'drop'"),
        ({"limits": {"memory": 1}}, "unknown key 'limits.memory'"),
        ({"augment": [{"type": "flip"}]}, "variants = 1"),
        ({"validation": 1.0}, "validation = 1.0"),
        ({"max_dropped": 1.5}, "max_dropped = 1.5"),
        ({"buckets": []}, "at least one"),
        ({"buckets": [[0, 64, 64]]}, "at least 1"),
        ({"buckets": [[8, 64, 64], [8, 64, 64]]}, "named twice"),
        ({"source_pattern": "a(b"}, "not a regular expression"),
        ({"source_pattern": "ab"}, "has no group"),
        ({"format": "csv"}, "format = 'csv'"),
        ({"media": "video"}, "media = 'video'"),
        ({"columns": {"vidio": "x"}}, "unknown key 'columns.vidio'.*'video'"),
        ({"columns": {"timestamp": "t", "start": "s"}}, "leave columns.start and columns.end null"),
        ({"columns": {"caption": []}}, "name at least one column"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataConfig.parse({"path": "x", **values})


def test_every_format_can_be_named() -> None:
    assert set(get_args(SourceFormat)) == {"auto", *FORMATS}
    for name in FORMATS:
        assert DataConfig.parse({"path": "x", "format": name}).format == name
