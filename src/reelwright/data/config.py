"""What a recipe says of its data: where the clips are, which part of each is used, at what size and speed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from reelwright.config import Config
from reelwright.types import Size

SourceFormat = Literal["auto", "captions_json", "txt", "metadata_json"]
WindowRule = Literal["head", "middle", "uniform"]
CacheDtype = Literal["float32", "float16", "bfloat16"]


class DataConfig(Config):
    """A folder of captioned clips and how samples are cut from them.

    A sample is `frames` pictures at `fps`, resized by area averaging and cropped at the centre, never stretched.
    With `buckets`, a clip goes to the longest bucket it fills, and among those to the nearest aspect ratio.
    """

    path: Path  # the collection: captions and videos, unless the next two say otherwise
    videos: Path | None = None  # folder of the videos
    captions: Path | None = None  # captions.json, metadata.json, or a folder of .txt files
    format: SourceFormat = "auto"
    only: Path | list[str] | None = None  # a JSON list, or the names themselves: use just these clips

    frames: int = Field(16, ge=1)
    fps: float = Field(8.0, gt=0, le=1000)
    width: int = Field(64, ge=1, le=16384)
    height: int = Field(64, ge=1, le=16384)
    buckets: list[tuple[int, int, int]] | None = None  # [frames, height, width] each; null: the one size above

    window: WindowRule = "head"
    windows: int = Field(1, ge=1)  # windows per clip

    validation: float = Field(0.1, ge=0, lt=1)  # fraction of the source videos held out
    source_pattern: str | None = None  # regex whose first group names a clip's source video
    max_dropped: float = Field(0.1, ge=0, le=1)  # fraction of the clips that may be dropped before training refuses
    cache_dtype: CacheDtype = "float32"

    @field_validator("buckets")
    @classmethod
    def _buckets_are_sizes(cls, buckets: list[tuple[int, int, int]] | None) -> list[tuple[int, int, int]] | None:
        if buckets is None:
            return None
        if not buckets:
            raise ValueError("buckets = []: give at least one [frames, height, width], or null for the one size")
        for bucket in buckets:
            if min(bucket) < 1:
                raise ValueError(f"bucket {list(bucket)}: frames, height and width must each be at least 1")
        if len(set(buckets)) != len(buckets):
            raise ValueError(f"buckets = {[list(b) for b in buckets]}: a bucket is named twice; remove one")
        return buckets

    @field_validator("source_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"source_pattern = {pattern!r} is not a regular expression: {error}") from None
        if groups < 1:
            raise ValueError(
                f"source_pattern = {pattern!r} has no group: put the source's name in ( ), as in '^(.+)_\\d+'"
            )
        return pattern

    @model_validator(mode="after")
    def _windows_need_room(self) -> DataConfig:
        if self.windows > 1 and self.window != "uniform":
            raise ValueError(
                f"windows = {self.windows} needs window = uniform; window = {self.window} gives one per clip"
            )
        return self

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The buckets; the one size of `frames`, `height`, `width` where none are given."""
        if self.buckets is None:
            return (Size(self.frames, self.height, self.width),)
        return tuple(Size(*bucket) for bucket in self.buckets)
