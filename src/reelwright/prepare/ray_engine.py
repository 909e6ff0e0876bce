"""`prepare` over Ray Data: decoding on CPU workers, encoding on GPU workers where there are any.

    pieces, in blocks -> _Decode (videos in a sandboxed child) -> frames -> _Encode -> the cache folder
                                                                        -> a row for each piece, back to this process

Workers write latents into the shared cache folder themselves; only places and reasons come back. A block whose worker
is lost is done again by another. As items are named by content and written whole, doing one twice changes nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

import reelwright
from reelwright.bundle import build_codec
from reelwright.data.cache import Cache
from reelwright.data.decode import VideoInfo
from reelwright.data.fingerprints import FileHashes, Journal
from reelwright.data.inspection import Inspection, Sample
from reelwright.data.sandbox import Decoders, default_workers
from reelwright.data.sources import Dropped
from reelwright.data.windows import Piece, WindowReader
from reelwright.prepare.encoding import STORED_AT_ONCE, Progress, encode_pieces
from reelwright.prepare.pictures import Pictures, pictures_of
from reelwright.prepare.ray_session import connected
from reelwright.recipe import Recipe
from reelwright.training.devices import resolve_device
from reelwright.types import UsageError, UserError

BLOCK_PIECES = STORED_AT_ONCE  # pieces a worker does at a time, and again where it is lost; fewer of large frames
BLOCK_BYTES = 32 << 20
BLOCKS_IN_STORE = 8
SEEN_SECONDS = 90.0  # network file systems may show a folder as it was a minute ago


def encode_with_ray(
    recipe: Recipe,
    codec: Any,
    cache: Cache,
    pieces: Sequence[Piece],
    info_of: Callable[[Sample], VideoInfo],
    progress: Progress,
    address: str | None = None,
    workers: int | None = None,
    pictures: Pictures | None = None,
) -> list[Dropped]:
    """Latents of all pieces into the cache; the clips that gave none, each once, in the order of `pieces`.

    On the cluster at `address`, else on a Ray of this machine alone that ends with this call; `workers` bounds the
    decoders. Where the caller is connected to Ray already, that connection is used and left. UsageError where Ray is
    not installed or does not answer; UserError for what no other worker could mend, and where the cache folder is not
    the same one for all. What was stored by then stays.
    """
    if not pieces:
        return []
    largest = 3 * max(math.prod(piece.plan.window.size.tuple) for piece in pieces)
    told = _Told(
        recipe=recipe,
        codec_fingerprint=codec.fingerprint(),
        pictures_fingerprint=pictures.fingerprint() if pictures is not None else "",
        folder=str(Path.cwd()),
        version=reelwright.__version__,
        threads=torch.get_num_threads(),
    )
    num_cpus = (workers or max(1, default_workers() - 1)) + told.threads  # of a Ray started here
    with connected(address, num_cpus, BLOCKS_IN_STORE * max(BLOCK_BYTES, largest)) as ray:
        rows = max(1, min(BLOCK_PIECES, BLOCK_BYTES // largest))
        items = [{"place": n, "piece": piece, "info": info_of(piece.sample)} for n, piece in enumerate(pieces)]
        dataset = _pipeline(ray, items, told, rows, workers)
        reasons: dict[int, str] = {}  # by place; "" for a piece that is stored
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                first = not reasons
                reasons.update(zip(batch["place"].tolist(), batch["reason"].tolist(), strict=True))
                if first:  # where the folder is not shared, hours need not pass before that is said
                    _wait_until_seen(cache, pieces, reasons)
                progress("encoding", len(reasons), len(pieces))
        except Exception as error:
            raise _plain(error, ray) from None
    _wait_until_seen(cache, pieces, reasons)
    lost: dict[str, str] = {}
    for place in sorted(reasons):
        if reasons[place]:
            lost.setdefault(pieces[place].sample.clip.id, reasons[place])
    return [Dropped(clip, reason) for clip, reason in lost.items()]


@dataclass(frozen=True)
class _Told:
    """What every worker is told once."""

    recipe: Recipe
    codec_fingerprint: str  # the codec itself is read where the worker runs: tensors are too much to tell
    pictures_fingerprint: str  # likewise of the encoder of first frames; "" where there is none
    folder: str  # of the command: what relative paths start from
    version: str
    threads: int  # of the command's products on a CPU: their last bits depend on it

    def settle(self) -> None:
        """Have this worker see what the command sees. UserError where its machine cannot."""
        with suppress(OSError):  # a machine without that folder can still do with absolute paths
            os.chdir(self.folder)
        node = os.uname().nodename
        if reelwright.__version__ != self.version:
            raise UserError(
                f"machine {node} of the Ray cluster has reelwright {reelwright.__version__}, this one {self.version}; "
                "install the same version on all of them"
            )
        data = self.recipe.data
        needed = {"cache_dir": self.recipe.cache_dir, "data.path": data.path, "data.videos": data.videos}
        for name, path in needed.items():
            if path is not None and not path.exists():
                raise UserError(
                    f"{name} = {path}: not there on machine {node} of the Ray cluster; every machine needs the data "
                    "and the cache folder under the same path"
                )


class _Decode:
    """Blocks of pieces -> their frames, decoded by one sandboxed child."""

    def __init__(self, told: _Told) -> None:
        self._told = told
        self._decoders: Decoders | None = None
        # Of this machine alone, in no file: another one numbers the same files and devices otherwise.
        self._files = FileHashes(Journal(Path(os.devnull)))

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, Any]:
        if self._decoders is None:  # not in __init__: an error there would come to the user without its text
            self._told.settle()
            self._decoders = Decoders(1, self._told.recipe.data.limits)
        pieces = list(block["piece"])
        infos = {piece.sample.sha256: info for piece, info in zip(pieces, block["info"], strict=True)}
        inspection = cast(Inspection, SimpleNamespace(info=lambda sample: infos[sample.sha256]))
        reader = WindowReader(inspection, self._decoders, self._files)
        frames = {piece.key: pixels for piece, pixels in reader.read(pieces)}
        reasons = {item.id: item.reason for item in reader.dropped}
        nothing = np.zeros((1, 1, 1, 3), dtype=np.uint8)
        return {
            "place": block["place"],
            "piece": block["piece"],
            "frames": [frames.get(piece.key, nothing) for piece in pieces],
            "reason": ["" if piece.key in frames else reasons[piece.sample.clip.id] for piece in pieces],
        }


class _Encode:
    """Frames -> latents in the cache, and of each piece why it has none."""

    def __init__(self, told: _Told, device: str) -> None:
        self._told, self._device = told, device
        self._codec: Any = None

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, Any]:
        recipe = self._told.recipe
        if self._codec is None:
            self._told.settle()
            torch.set_num_threads(self._told.threads)
            self._cache, codec = Cache(recipe.cache_dir), build_codec(recipe)
            self._same("codec", codec.fingerprint(), self._told.codec_fingerprint)
            pictures = pictures_of(recipe, codec)
            self._same("text", pictures.fingerprint() if pictures else "", self._told.pictures_fingerprint)
            self._codec, self._pictures = codec, pictures
        rows = list(zip(block["piece"], block["frames"], block["reason"], strict=True))
        windows = ((piece, frames) for piece, frames, reason in rows if not reason)
        device = resolve_device(self._device)
        dtype = recipe.data.cache_dtype
        lost = encode_pieces(self._codec, self._cache, windows, dtype, device, pictures=self._pictures)
        reasons = {item.id: item.reason for item in lost}
        return {
            "place": block["place"],
            "reason": [reason or reasons.get(piece.sample.clip.id, "") for piece, _, reason in rows],
        }

    @staticmethod
    def _same(part: str, here: str, told: str) -> None:
        if here != told:
            node = os.uname().nodename
            raise UserError(f"{part}: machine {node} of the Ray cluster has other weights than this one")


def _pipeline(ray: Any, items: list[dict[str, Any]], told: _Told, rows: int, workers: int | None) -> Any:
    """The data set of {place, reason}, in no order; nothing is done before it is read. UsageError: no GPU, one CPU."""
    there, device = ray.cluster_resources(), told.recipe.train.device
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    gpu = gpus >= 1 and device != "cpu"
    if device.startswith("cuda") and not gpu:
        raise UsageError(f"train.device = '{device}': the Ray cluster has no GPU; use auto or cpu")
    if not gpu and cpus < 2:
        raise UsageError(f"the Ray cluster has {cpus:g} CPUs; decoding and encoding need at least one each")
    widest = max(node["Resources"].get("CPU", 0) for node in ray.nodes())
    need = {"num_gpus": 1} if gpu else {"num_cpus": max(1, min(told.threads, int(widest) - 1))}

    dataset = ray.data.from_items(items, override_num_blocks=-(-len(items) // rows))
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.raise_original_map_exception = True  # wrapped by Ray, a UserError would lose its type
    pool = ray.data.ActorPoolStrategy
    dataset = dataset.map_batches(
        _Decode, fn_constructor_args=(told,), batch_size=None, batch_format="numpy",
        compute=pool(min_size=1, max_size=workers), num_cpus=1,
    )  # fmt: skip
    return dataset.map_batches(
        _Encode, fn_constructor_args=(told, "cuda" if gpu else "cpu"), batch_size=rows, batch_format="numpy",
        zero_copy_batch=False, compute=pool(), **need,
    )  # fmt: skip


def _wait_until_seen(cache: Cache, pieces: Sequence[Piece], reasons: dict[int, str]) -> None:
    """Take in what workers stored. UserError where it does not appear here."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        cache.pack()
        missing = sum(not reason and not cache.has(pieces[place].key) for place, reason in reasons.items())
        if not missing:
            return
        if time.monotonic() > deadline:
            raise UserError(
                f"cache_dir = {cache.root}: {missing} latents that Ray's workers stored there do not appear here; "
                "it must be one folder, on a file system that all machines of the cluster share"
            )
        time.sleep(1.0)


def _plain(error: Exception, ray: Any) -> Exception:
    """What a worker raised, as the user should read it; the error itself where it is a mistake of ours."""
    # Ray's wrapper is an instance of what it wraps, but its text is a traceback.
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(
        inner := getattr(error, "cause", None), Exception
    ):
        error = inner
    if isinstance(error, UserError):
        return type(error)(str(error).partition("\nFailed to apply UDF")[0])  # the rest is Ray's: how to try again
    if isinstance(error, (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError)):
        return UserError(f"Ray: {' '.join(str(error).split())[:500]}; the same command goes on where this one stopped")
    return error
