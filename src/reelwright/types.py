"""What crosses the rooms: sizes, clips, text, posteriors, batches, and the protocols models answer to.

Dimension letters, used in every shape comment of the project:

    b  batch          c  channels       f  frames (pixel or latent; `t` is only diffusion time)
    h  height         w  width          l  text tokens       n  visual tokens       d  model width

Pixels are uint8 `f h w c` (RGB) at the edges; video tensors inside are float `b c f h w` in [-1, 1];
latents are float `b c f h w`.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


class UserError(Exception):
    """A mistake the user can mend. The command line prints its text alone, without a traceback.

    The text names the file or field, the value, the rule and a way out.
    `exit_code` is 2 for wrong usage (command, recipe, paths) and 1 for work that failed.
    """

    exit_code = 1


class UsageError(UserError):
    """Wrong usage: an unknown key, a missing folder, a recipe that contradicts itself."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Size:
    """Extent of a video (or of its latents): frames, height, width."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"a size has at least one frame and one pixel a side, got {self}")

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def tuple(self) -> tuple[int, int, int]:
        return (self.frames, self.height, self.width)


def nearest_multiples(extent: int, factor: int) -> str:
    """The multiples of a factor around an extent it does not divide, in words: '4 or 6'."""
    below, above = extent // factor * factor, (extent // factor + 1) * factor
    return f"{below} or {above}" if below else f"{above}"


@dataclass(frozen=True)
class Compression:
    """How many pixels one latent covers along each axis.

    A `causal` codec keeps the first frame by itself: f latents stand for 1 + (f - 1) * frames pictures.
    """

    frames: int
    height: int
    width: int
    causal: bool = False

    def latent_size(self, size: Size) -> Size:
        """Size of the latents of a video. ValueError names the axis that does not divide and the nearest that do."""
        extents = {"frames": size.frames, "height": size.height, "width": size.width}
        latent = {}
        for axis, extent in extents.items():
            factor = getattr(self, axis)
            first = 1 if self.causal and axis == "frames" else 0
            count, rest = divmod(extent - first, factor)
            if rest or count + first < 1:
                below = max(count, 1 - first) * factor + first
                above = (max(count, 0) + 1) * factor + first
                rule = f"a multiple of {factor}" + (" plus 1" if first else "")
                ways = " or ".join(str(n) for n in sorted({below, above}))
                raise ValueError(f"{axis} = {extent} does not fit the codec: it must be {rule}; use {ways}")
            latent[axis] = count + first
        return Size(**latent)

    def pixel_size(self, latent: Size) -> Size:
        """Inverse of `latent_size`."""
        frames = 1 + (latent.frames - 1) * self.frames if self.causal else latent.frames * self.frames
        return Size(frames, latent.height * self.height, latent.width * self.width)


@dataclass(frozen=True)
class FileSlice:
    """A file that lies whole and uncompressed inside another one: a member of a tar archive.

    It answers to what the rooms ask of a `Path` they only read from.
    """

    container: Path
    offset: int  # bytes before it
    num_bytes: int
    name: str  # of the member

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def url(self) -> str:
        """What FFmpeg opens it by (its protocols `subfile` and `file`)."""
        return f"subfile,,start,{self.offset},end,{self.offset + self.num_bytes},,:file:{self.container}"

    def exists(self) -> bool:
        return self.container.exists()

    def is_file(self) -> bool:
        return self.container.is_file()

    def stat(self) -> os.stat_result:
        """Of the file around it: no member has times of its own that could be trusted."""
        return self.container.stat()

    def resolve(self) -> FileSlice:
        return replace(self, container=self.container.resolve())

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Its bytes alone, to read and to seek in. ValueError for any mode but "rb"."""
        if mode != "rb":
            raise ValueError(f"mode = {mode!r}: a slice of a file is only read, as 'rb'")
        return io.BufferedReader(_SliceReader(self))

    def __str__(self) -> str:
        return f"{self.container}@{self.offset}+{self.num_bytes}"


class _SliceReader(io.RawIOBase):
    def __init__(self, part: FileSlice) -> None:
        super().__init__()
        self._file, self._part, self._at = part.container.open("rb"), part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._part.num_bytes)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._part.offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._part.num_bytes - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


VideoFile = Path | FileSlice  # what `Clip.video` is, and what decoding takes


@dataclass(frozen=True)
class Clip:
    """One captioned video of a collection, or a part of one, before anything is decoded.

    `start_seconds` and `end_seconds` bound the part that is used, counted from the file's first timestamp.
    """

    id: str  # unique and stable within the collection: the path relative to the videos folder, and the part's times
    video: VideoFile
    captions: tuple[str, ...]
    source: str  # clips of one source video never stand on both sides of the train/validation split
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Text:
    """Captions as a model takes them: token ids `b l` (int64) or embeddings `b l d` (float), and which are real."""

    values: Tensor
    mask: Tensor  # `b l` bool: True where the token is real, False where it pads
    image: Tensor | None = None  # `b c f h w`: latents of the picture a video starts from, for models that take one
    weights: Tensor | None = None  # of tokens in their mean: `b l`, or `b p l` for p parts of the latents; None: alike

    def __post_init__(self) -> None:
        if self.values.shape[:2] != self.mask.shape:
            raise ValueError(f"text {tuple(self.values.shape)} and its mask {tuple(self.mask.shape)} differ")
        if self.weights is not None and (self.weights.shape[0], self.weights.shape[-1]) != self.mask.shape:
            raise ValueError(f"text's weights {tuple(self.weights.shape)} and its mask {tuple(self.mask.shape)} differ")

    def to(self, *args: Any, **kwargs: Any) -> Text:
        """Move as `Tensor.to` does; the mask keeps its dtype."""
        values = self.values.to(*args, **kwargs)
        image = None if self.image is None else self.image.to(*args, **kwargs)
        weights = None if self.weights is None else self.weights.to(values.device)
        return Text(values, self.mask.to(values.device), image, weights)

    def of_part(self, part: int) -> Text:
        """As the network of a part of the latents sees it."""
        if self.weights is None or self.weights.ndim == 2:
            return self
        return replace(self, weights=self.weights[:, part])

    def __len__(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True)
class Posterior:
    """What a codec says of a clip's latents: mean, and log-variance where the codec is stochastic. `(b) c f h w`."""

    mean: Tensor
    logvar: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logvar is not None and self.logvar.shape != self.mean.shape:
            raise ValueError(f"mean {tuple(self.mean.shape)} and logvar {tuple(self.logvar.shape)} differ")

    def sample(self, noise: Tensor | None) -> Tensor:
        """mean + exp(logvar / 2) * noise; the mean alone where the codec is deterministic or noise is None."""
        if self.logvar is None or noise is None:
            return self.mean
        return self.mean + (0.5 * self.logvar.clamp(-30.0, 20.0)).exp() * noise

    def to(self, *args: Any, **kwargs: Any) -> Posterior:
        logvar = None if self.logvar is None else self.logvar.to(*args, **kwargs)
        return Posterior(self.mean.to(*args, **kwargs), logvar)


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket, as the loss takes them. `(index, epoch)` keys every random draw of a sample."""

    indices: tuple[int, ...]  # global sample index in the prepared collection
    epochs: tuple[int, ...]  # which pass over its bucket each sample belongs to
    latents: Posterior  # `b c f h w`
    text: Text  # token ids where the text encoder trains, embeddings where it is frozen
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.indices), len(self.epochs), len(self.captions), len(self.text), self.latents.mean.shape[0]}
        if len(lengths) != 1 or self.latents.mean.ndim != 5:
            raise ValueError(f"a batch of mixed lengths {lengths} or latents {tuple(self.latents.mean.shape)}")

    def __len__(self) -> int:
        return len(self.indices)


class Denoiser(Protocol):
    """x_t `b c f h w`, t `b` in [0, 1] (0 data, 1 noise), cond `b l d` -> prediction of x_t's shape."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor: ...


@runtime_checkable
class Codec(Protocol):
    """Video <-> latents. `encode` takes float `b 3 f h w` in [-1, 1]; `decode` gives the same."""

    channels: int
    compression: Compression

    def encode(self, video: Tensor) -> Posterior: ...
    def decode(self, latents: Tensor) -> Tensor: ...


@runtime_checkable
class TextEncoder(Protocol):
    """Captions -> token ids -> embeddings. A `trainable` one is trained with the denoiser."""

    width: int
    trainable: bool

    def tokenize(self, captions: list[str]) -> Text: ...
    def __call__(self, tokens: Text) -> Text: ...


@dataclass(frozen=True)
class Bundle:
    """Everything that makes videos from captions: what a run, an export or a pretrained family loads into.

    `objective` is a `diffusion.objective.Objective`; it is typed loosely because this floor imports no room.
    """

    denoiser: nn.Module
    codec: Any
    text: Any
    objective: Any
    lora_targets: tuple[str, ...] = ()
    base_sha256: str = ""  # of the frozen weights, where adapters beside them are what trains
