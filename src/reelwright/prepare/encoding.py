"""Decoded windows -> latents in the cache: the part of `prepare` that every engine runs. Nothing is fitted here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelwright.data.cache import Cache, is_finite
from reelwright.data.fingerprints import text_key
from reelwright.data.sources import Dropped
from reelwright.data.windows import Piece
from reelwright.models.codec import pixels_to_video
from reelwright.prepare.pictures import Pictures

STORED_AT_ONCE = 16  # latents that share a file and a wait for the disk
TEXTS_AT_ONCE = 64  # the same of captions
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Progress = Callable[[str, int, int], None]  # stage, done, total


def encode_pieces(
    codec: Any,
    cache: Cache,
    windows: Iterable[tuple[Piece, np.ndarray]],
    dtype: str,
    device: torch.device,
    on_stored: Callable[[int], None] = lambda _: None,
    pictures: Pictures | None = None,
) -> list[Dropped]:
    """Encode (piece, uint8 `f h w c`) and store each under its key; the clips whose latents are NaN, each once.

    One window at a time: a latent is then a function of its window alone, the same bytes whichever process encodes
    it beside whatever else. Batching would gain little: a codec's products are large enough with one clip's frames,
    and decoding is what takes the time. `on_stored(n)` is called when n more windows are dealt with; those that have
    a latent have it on disk by then. With `pictures` a window's item holds its first frame too. The codec stays on
    `device`.
    """
    codec.to(device)
    dropped: dict[str, Dropped] = {}
    for batch in _of_one_size(windows, STORED_AT_ONCE):
        items = {}
        for piece, pixels in batch:
            item = encode_window(codec, pixels, dtype, device)
            if pictures is not None:
                item |= pictures.encode(piece.key, pixels, DTYPES[dtype], device)
            if all(is_finite(tensor) for tensor in item.values()):
                items[piece.key] = item
            else:
                clip = piece.sample.clip.id
                dropped[clip] = Dropped(clip, f"the codec {codec.config.type} makes NaN or infinity of it")
        cache.put_many(f"latent-{batch[0][0].plan.size}", items)
        on_stored(len(batch))
    return list(dropped.values())


@torch.no_grad()
def encode_window(codec: Any, pixels: np.ndarray, dtype: str, device: torch.device) -> dict[str, Tensor]:
    """uint8 `f h w c` -> {"mean": `c f h w`} and, of a stochastic codec, "logvar", on the CPU."""
    posterior = codec.encode(pixels_to_video(torch.from_numpy(pixels)[None]).to(device))
    parts = {"mean": posterior.mean, "logvar": posterior.logvar}
    return {name: tensor[0].to("cpu", DTYPES[dtype]) for name, tensor in parts.items() if tensor is not None}


@torch.no_grad()
def encode_texts(
    text: Any,
    fingerprint: str,
    cache: Cache,
    captions: Sequence[str],
    progress: Progress,
    device: torch.device = torch.device("cpu"),
) -> None:
    """Store each caption: token ids of a trainable encoder, embeddings of a frozen one, without padding.

    One at a time, as windows are: beside a longer caption an embedding comes out with other last bits.
    """
    name = "tokens" if text.trainable else "embeddings"
    dtype = torch.int32 if text.trainable else torch.float32
    if captions and not text.trainable:
        text.to(device)
    for start in range(0, len(captions), TEXTS_AT_ONCE):
        chunk, items = captions[start : start + TEXTS_AT_ONCE], {}
        for caption in chunk:
            tokens = text.tokenize([caption])
            encoded = tokens if text.trainable else text(tokens.to(device))
            items[text_key(caption, fingerprint)] = {name: encoded.values[0][encoded.mask[0]].to("cpu", dtype)}
        cache.put_many("text", items)
        progress("captions", start + len(chunk), len(captions))
    if captions and not text.trainable:
        text.to("cpu")


def _of_one_size(windows: Iterable[tuple[Piece, np.ndarray]], count: int) -> Iterator[list[tuple[Piece, np.ndarray]]]:
    """The windows in order, up to `count` of one size at a time."""
    batch: list[tuple[Piece, np.ndarray]] = []
    for piece, pixels in windows:
        if batch and (len(batch) == count or batch[0][0].plan.size != piece.plan.size):
            yield batch
            batch = []
        batch.append((piece, pixels))
    if batch:
        yield batch
