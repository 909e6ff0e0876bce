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
from reelwright.models.codec import pixels_to_video
from reelwright.prepare.encoding import Progress
from reelwright.prepare.pieces import pieces_of
from reelwright.recipe import Recipe

FIT_CLIPS = 1024  # windows a codec is fitted on at most, evenly taken from the training split


def fitted_codec(recipe: Recipe) -> Any | None:
    """The codec as fitted before; None where it still has to be."""
    if recipe.codec.build().needs_fit and not fitted_path(recipe, "codec").exists():
        return None
    return build_codec(recipe)


def fitted_text(recipe: Recipe) -> Any | None:
    """The text encoder with the tokenizer fitted before; None where it still has to be."""
    if recipe.text.type == "native" and not fitted_path(recipe, "text").exists():
        return None
    return build_text(recipe)


def fit_codec(recipe: Recipe, inspection: Inspection, frames: WindowReader, progress: Progress) -> Any:
    """Fit on plain training windows only: the held-out clips stay unseen."""
    codec: Any = recipe.codec.build()
    training = [sample for sample in inspection.samples if sample.split == "train"] or list(inspection.samples)
    chosen = [pieces_of(inspection, s, recipe.data, "")[0] for s in training[:: -(-len(training) // FIT_CLIPS)]]

    codec.fit(_Videos(frames, chosen, lambda done: progress("fitting the codec", done, len(chosen))))
    write_fitted(recipe, "codec", save(codec.state_dict()))
    return codec


def fit_text(recipe: Recipe, inspection: Inspection) -> Any:
    """A tokenizer of the training clips' captions; a frozen encoder as it is."""
    text: Any = recipe.text.build()
    if not text.trainable:
        return text
    text.fit(caption for sample in inspection.samples if sample.split == "train" for caption in sample.clip.captions)
    write_fitted(recipe, "text", text.tokenizer_json().encode())
    return text


class _Videos:
    """Decoded windows as a codec's `fit` reads them: float `1 3 f h w`, of known number."""

    def __init__(self, frames: WindowReader, pieces: Sequence[Piece], on_read: Callable[[int], None]) -> None:
        self._frames, self._pieces, self._on_read = frames, pieces, on_read

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Tensor]:
        for number, (_, pixels) in enumerate(self._frames.read(self._pieces, keep=True), start=1):
            self._on_read(number)
            yield pixels_to_video(torch.from_numpy(pixels)[None])
