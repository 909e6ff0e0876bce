"""What is fitted on the data before anything can be encoded: the codec and the native text encoder's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from reelwright.bundle import build_codec, build_text, fitted_path, write_fitted
from reelwright.data.inspection import Inspection
from reelwright.data.windows import Piece, WindowReader
from reelwright.loading import DeferredText, is_frozen
from reelwright.models.codec import pixels_to_video
from reelwright.models.trained_codec import TrainedCodec
from reelwright.prepare.encoding import Progress
from reelwright.prepare.pieces import pieces_of
from reelwright.recipe import Recipe
from reelwright.training.devices import has_fast_bf16, resolve_device


def fitted_codec(recipe: Recipe) -> Any | None:
    """The codec as fitted before; None where it still has to be."""
    codec: Any = recipe.codec.build()
    if not codec.needs_fit:
        return codec
    return build_codec(recipe) if fitted_path(recipe, "codec").exists() else None


def fitted_text(recipe: Recipe) -> Any | None:
    """The text encoder with the tokenizer fitted before; None where it still has to be."""
    if is_frozen(recipe, "text"):
        return DeferredText(recipe)
    return build_text(recipe) if fitted_path(recipe, "text").exists() else None


def fit_codec(recipe: Recipe, inspection: Inspection, frames: WindowReader, progress: Progress) -> Any:
    """Fit on plain training windows only: the held-out clips stay unseen."""
    codec: Any = recipe.codec.build()
    training = [sample for sample in inspection.samples if sample.split == "train"] or list(inspection.samples)
    stride = -(-len(training) // codec.config.fit_clips)
    chosen = [pieces_of(inspection, s, recipe.data, "")[0] for s in training[::stride]]
    videos = _Videos(frames, chosen, lambda done: progress("fitting the codec", done, len(chosen)))

    if isinstance(codec, TrainedCodec):
        device = resolve_device(recipe.train.device)
        dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32

        def on_step(done: int, total: int) -> None:
            progress("training the codec", done, total)

        codec.to(device).fit(videos, on_step, dtype, videos.captions)
        codec.to("cpu")
    else:
        codec.fit(videos)
    write_fitted(recipe, "codec", save(codec.state_dict()))
    return codec


def fit_text(recipe: Recipe, inspection: Inspection) -> Any:
    """A tokenizer of the training clips' captions; a frozen encoder as it is."""
    if is_frozen(recipe, "text"):
        return DeferredText(recipe)
    text: Any = recipe.text.build()
    text.fit(caption for sample in inspection.samples if sample.split == "train" for caption in sample.clip.captions)
    write_fitted(recipe, "text", text.tokenizer_json().encode())
    return text


class _Videos:
    """Decoded windows as a codec's `fit` reads them: float `1 3 f h w`, of known number.

    `captions` grows with them: a clip that does not decode is in neither.
    """

    def __init__(self, frames: WindowReader, pieces: Sequence[Piece], on_read: Callable[[int], None]) -> None:
        self._frames, self._pieces, self._on_read = frames, pieces, on_read
        self.captions: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Tensor]:
        for number, (piece, pixels) in enumerate(self._frames.read(self._pieces, keep=True), start=1):
            self.captions.append(piece.sample.clip.captions)
            self._on_read(number)
            yield pixels_to_video(torch.from_numpy(pixels)[None])
