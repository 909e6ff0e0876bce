"""What a recipe says of its data: where the clips are, which part of each is used, at what size and speed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import Field, field_validator, model_validator

from reelwright.config import Config
from reelwright.data.augmentation import Augment, Augmentation, check_augment
from reelwright.data.limits import LimitsConfig
from reelwright.types import Size

SourceFormat = Literal[
    "auto", "captions_json", "metadata_json", "txt", "videofolder", "msrvtt", "webdataset", "table"
]  # beside "auto" the names of `data.sources.FORMATS`
Media = Literal["auto", "videos", "images", "all"]
WindowRule = Literal["head", "middle", "uniform", "spread"]
CacheDtype = Literal["float32", "float16", "bfloat16"]


class ColumnsConfig(Config):
    """Which columns of a table say what; those left null are found by their usual names."""

    video: str | None = None  # file name, path or stem
    caption: str | list[str] | None = None  # several columns: several captions a clip
    start: str | None = None  # seconds, or [hours:]minutes:seconds
    end: str | None = None
    timestamp: str | None = None  # instead of the two: [start, end], or a list of such pairs beside a list of captions
    split: str | None = None  # what `data.split` chooses by

    @model_validator(mode="after")
    def _times_are_given_once(self) -> ColumnsConfig:
        if self.timestamp is not None and (self.start is not None or self.end is not None):
            raise ValueError(
                f"columns.timestamp = {self.timestamp!r} holds start and end: leave columns.start and columns.end null"
            )
        if self.caption == []:
            raise ValueError("columns.caption = []: name at least one column, or null to find it by its usual name")
        return self


class DataConfig(Config):
    """A folder of captioned clips and how samples are cut from them.

    A sample is `frames` pictures at `fps`, resized by area averaging and cropped at the centre, never stretched.
    With `buckets`, a clip goes to the longest bucket it fills, and among those to the nearest aspect ratio; `auto`
    derives them from the lengths and aspect ratios that are there (`data.auto_buckets`).
    """

    path: Path  # the collection: captions and videos, unless the next two say otherwise
    videos: Path | None = None  # folder of the videos
    captions: Path | None = None  # the file that holds the captions, or a folder of .txt files
    format: SourceFormat = "auto"
    columns: ColumnsConfig = ColumnsConfig()  # of formats table and videofolder
    split: str | None = None  # of a collection that names splits: train, validation, test, 9k, ...; null: all of it
    only: Path | list[str] | None = None  # a list (.json, .txt, .csv), or the names themselves: use just these videos
    media: Media = "auto"  # auto: the videos, or the images (clips of one frame) where there is no video
    partial: bool = False  # captions without their video and videos without caption are noted, not counted as dropped

    frames: int = Field(16, ge=1)
    fps: float = Field(8.0, gt=0, le=1000)
    width: int = Field(64, ge=1, le=16384)
    height: int = Field(64, ge=1, le=16384)
    buckets: list[tuple[int, int, int]] | Literal["auto"] | None = None  # [frames, height, width]; null: the one above
    bucket_multiple: int = Field(16, ge=1)  # with buckets = auto: every height and width is a multiple of this

    window: WindowRule = "head"  # spread: evenly over the whole clip, whatever fps says; this changes motion's speed
    windows: int = Field(1, ge=1)  # windows per clip
    scene_cuts: float | None = Field(None, gt=0, le=255)  # a change this large is a cut (27 is usual); null: off

    augment: list[Augment] = []  # how further variants of a clip differ from it; see data/augmentation.py
    variants: int = Field(1, ge=1)  # of each training clip that are encoded and kept: the clip itself, and others

    validation: float = Field(0.1, ge=0, lt=1)  # fraction of the source videos held out
    near_duplicates: bool = True  # clips that look the same are one source: on one side of the split
    source_pattern: str | None = None  # regex whose first group names a clip's source video
    flagged: Literal["keep", "drop"] = "keep"  # clips that are black, or one still picture, from first to last frame
    max_dropped: float = Field(0.1, ge=0, le=1)  # fraction of the clips that may be dropped before training refuses
    limits: LimitsConfig = LimitsConfig()  # of memory and time, for decoding one file
    cache_dtype: CacheDtype = "float32"

    @field_validator("buckets")
    @classmethod
    def _buckets_are_sizes(cls, buckets: Any) -> Any:
        if buckets is None or buckets == "auto":
            return buckets
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

    @model_validator(mode="after")
    def _augmentation_adds_up(self) -> DataConfig:
        check_augment(self.augment, self.variants, self.window)
        return self

    @model_validator(mode="after")
    def _sides_are_multiples(self) -> DataConfig:
        smallest, multiple = min(self.height, self.width), self.bucket_multiple
        if self.buckets == "auto" and smallest < multiple:
            raise ValueError(
                f"height = {self.height}, width = {self.width}: with buckets = auto both must be at least "
                f"bucket_multiple = {multiple}; lower bucket_multiple or raise them"
            )
        return self

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The buckets; the one size of `frames`, `height`, `width` where none are given or none are derived yet."""
        if self.buckets is None or self.buckets == "auto":
            return (Size(self.frames, self.height, self.width),)
        return tuple(Size(*bucket) for bucket in self.buckets)


def add_augmentation(augmentation: type[Augmentation]) -> None:
    """Let `data.augment` name an augmentation of your own: a class with a `type` and `read`, `change` or both.

    One of the same type, as a notebook's cell run twice makes it, takes the place of the earlier one. ValueError where
    the class has no type, or that of one of the package's: their latents would be taken for one another.
    """
    field, kind = DataConfig.model_fields["augment"], augmentation.model_fields.get("type")
    if kind is None or get_args(kind.annotation) != (kind.default,):
        raise ValueError(
            f"{augmentation.__name__}: has no type for recipes to name it by; give the class a line such as "
            'type: Literal["mine"] = "mine"'
        )
    union, by_type = get_args(get_args(field.annotation)[0])
    known = {one.model_fields["type"].default: one for one in get_args(union)}
    if known.get(kind.default) in get_args(get_args(Augment)[0]):
        raise ValueError(
            f"{augmentation.__name__}: type = '{kind.default}' is that of one of the package's, whose cached latents "
            "would be taken for this one's; choose another"
        )
    known[kind.default] = augmentation
    field.annotation = list[Annotated[Union[tuple(known.values())], by_type]]  # noqa: UP007 - made at run time
    # A recipe's schema, where it is there already, holds this one's as it was.
    holders = [c for c in Config.__subclasses__() if any(f.annotation is DataConfig for f in c.model_fields.values())]
    for config in (DataConfig, *holders):
        config.model_rebuild(force=True)
