"""How fast does a random epoch come out of the cache, against one `.pt` a clip and against webdataset?

The same items everywhere: latents float32 4 x 4 x 32 x 32 (64 KiB) and the token ids of one caption. Every reader gives
batches of 16: latents stacked, token ids padded, with their mask. What is compared:

    reelwright   CachedDataset.load in BucketSampler's order; the first epoch of a process compares every item with its
                 checksum, later ones do not
    pt           torch.load of one `.pt` a clip in a shuffled DataLoader (in this process, and with 2 workers)
    webdataset   tar shards of 512 with two .npy members a clip, or one .pth, its usual pipeline: shards shuffled,
                 shuffle(1000), decode, to_tuple, batched (in this process)

All readers in turn, then all in the opposite order, the better of the two counts for each; once with the files in the
page cache and once after the system was told to forget them (posix_fadvise DONTNEED; how much it kept is measured by
reads that must not wait). Every tensor every reader gives is compared bit by bit with what was stored.

    python benchmarks/cache_read.py --json cache_read.json
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelwright.console import Progress, print_table
from reelwright.data.buckets import BucketSampler
from reelwright.data.cache import Cache
from reelwright.data.dataset import CachedDataset, Manifest, PreparedSample, pad_texts, read_manifest, write_manifest
from reelwright.data.fingerprints import latent_key, text_key
from reelwright.types import Size

LATENT = (4, 4, 32, 32)  # c f h w, float32: 64 KiB
SIZE = Size(16, 256, 256)  # of the clips they might be of
SHARD, BATCH = 512, 16

Batches = Iterator[tuple[list[int], Tensor, Tensor]]  # numbers of the clips, latents `b c f h w`, token ids `b l`
Reader = Callable[[int], Batches]  # the epoch's number -> its batches


def item(number: int) -> tuple[Tensor, Tensor]:
    """(latents, token ids) of a clip."""
    draw = torch.Generator().manual_seed(number)
    length = 6 + int(torch.randint(26, (), generator=draw))
    return torch.randn(LATENT, generator=draw), torch.randint(1, 4096, (length,), dtype=torch.int32, generator=draw)


def collate(rows: list[tuple[int, Tensor, Tensor]]) -> tuple[list[int], Tensor, Tensor]:
    text = pad_texts([tokens for _, _, tokens in rows], pad_id=0)
    return [number for number, _, _ in rows], torch.stack([latents for _, latents, _ in rows]), text.values


# -- writing


def write_cache(folder: Path, count: int) -> None:
    cache, samples = Cache(folder), []
    for start in range(0, count, 64):
        latents, texts = {}, {}
        for number in range(start, min(start + 64, count)):
            key, caption = (
                latent_key(f"{number:064x}", 0.0, Size(16, 256, 256), 8.0, "codec", "float32"),
                f"clip {number}",
            )
            latents[key], texts[text_key(caption, "t")] = {"mean": item(number)[0]}, {"tokens": item(number)[1]}
            samples.append(
                PreparedSample(
                    number, f"{number}.mp4", 0, 0.0, (caption,), "train", SIZE, Size(*LATENT[1:]), (key,),
                    (text_key(caption, "t"),),
                )
            )  # fmt: skip
        cache.put_many("latent-16x256x256", latents)
        cache.put_many("text", texts)
    cache.put(text_key("", "t"), "text", {"tokens": torch.ones(1, dtype=torch.int32)})
    cache.pack()
    write_manifest(cache, Manifest("bench", tuple(samples), (), "codec", "t", text_key("", "t")))


def write_pt(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        latents, tokens = item(number)
        torch.save({"latents": latents, "tokens": tokens}, folder / f"{number:06}.pt")


def write_tar(folder: Path, count: int, kind: str) -> None:
    folder.mkdir()
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:04}.tar", "w") as tar:
            for number in range(start, min(start + SHARD, count)):
                latents, tokens = item(number)
                members: dict[str, io.BytesIO] = {}
                if kind == "npy":
                    for name, tensor in (("latents.npy", latents), ("tokens.npy", tokens)):
                        np.save(members.setdefault(name, io.BytesIO()), tensor.numpy())
                else:
                    torch.save({"latents": latents, "tokens": tokens}, members.setdefault("pth", io.BytesIO()))
                for name, data in members.items():
                    about = tarfile.TarInfo(f"{number:06}.{name}")
                    about.size = data.tell()
                    data.seek(0)
                    tar.addfile(about, data)


# -- reading


def read_cache(folder: Path) -> Reader:
    cache = Cache(folder)
    dataset = CachedDataset(cache, read_manifest(cache, "bench"), "train")
    sampler = BucketSampler(dataset.buckets(), BATCH, seed=0)
    steps = len(dataset) // BATCH

    def epoch(number: int) -> Batches:
        for step in range(number * steps, (number + 1) * steps):
            batch = dataset.load(sampler.batch(step)[1], seed=0)
            yield list(batch.indices), batch.latents.mean, batch.text.values

    return epoch


class PtClips(torch.utils.data.Dataset):  # pyright: ignore[reportMissingTypeArgument]
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.pt"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        read = torch.load(self.paths[index], weights_only=True)
        return index, read["latents"], read["tokens"]


def read_pt(folder: Path, workers: int = 0) -> Reader:
    clips = PtClips(folder)

    def epoch(number: int) -> Batches:
        order = torch.Generator().manual_seed(number)
        yield from torch.utils.data.DataLoader(
            clips, batch_size=BATCH, shuffle=True, generator=order, collate_fn=collate, num_workers=workers
        )

    return epoch


def read_tar(folder: Path, kind: str) -> Reader:
    from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue, reportMissingImports] - extra bench

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    members = ("__key__", "latents.npy", "tokens.npy") if kind == "npy" else ("__key__", "pth")

    def row(sample: tuple[Any, ...]) -> tuple[int, Tensor, Tensor]:
        if kind == "npy":
            return int(sample[0]), torch.from_numpy(sample[1]), torch.from_numpy(sample[2])
        return int(sample[0]), sample[1]["latents"], sample[1]["tokens"]

    def epoch(number: int) -> Batches:
        pipeline = WebDataset(shards, shardshuffle=len(shards), seed=number).shuffle(1000).decode()
        yield from pipeline.to_tuple(*members).map(row).batched(BATCH, collation_fn=collate)  # pyright: ignore

    return epoch


# -- measuring


def forget(folder: Path) -> float | None:
    """Ask the system to drop a folder's files from its page cache; the fraction it kept, None where that is unknown."""
    kept, asked = 0, 0
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for at in range(0, size, 1 << 20):
                asked += 1
                try:
                    kept += os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT)
                except OSError as error:
                    if error.errno != errno.EAGAIN:
                        return None
        finally:
            os.close(descriptor)
    return kept / max(1, asked)


def timed(batches: Batches, count: int) -> tuple[float, float]:
    """(samples per second, microseconds a sample of this process's processor time) of one epoch.

    AssertionError where it is not all of it.
    """
    started, processor, seen = time.perf_counter(), time.process_time(), 0
    for numbers, latents, tokens in batches:
        assert latents.shape == (len(numbers), *LATENT) and len(tokens) == len(numbers)
        seen += len(numbers)
    seconds = time.perf_counter() - started
    assert seen == count, f"{seen} of {count} samples"
    return seen / seconds, (time.process_time() - processor) / seen * 1e6


def compare(batches: Batches, count: int) -> None:
    """AssertionError unless every clip comes once, bit by bit as it was stored."""
    seen = set()
    for numbers, latents, tokens in batches:
        for number, got, ids in zip(numbers, latents, tokens, strict=True):
            wanted, wanted_ids = item(number)
            assert got.dtype == wanted.dtype and torch.equal(got.view(torch.int32), wanted.view(torch.int32)), number
            assert ids[: len(wanted_ids)].tolist() == wanted_ids.tolist() and not ids[len(wanted_ids) :].any(), number
        seen |= set(numbers)
    assert seen == set(range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4096, help="a multiple of 16")
    parser.add_argument("--folder", type=Path, help="where the files are written (a disk; default: temporary files)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = arguments.items // BATCH * BATCH
    passes: dict[str, list[tuple[float, float]]] = {}
    kept: dict[str, float | None] = {}
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, Progress() as progress:
        root = Path(name)
        makers: dict[str, tuple[Path, Callable[[], Reader]]] = {
            "reelwright": (root / "cache", lambda: read_cache(root / "cache")),
            "pt": (root / "pt", lambda: read_pt(root / "pt")),
            "pt, 2 workers": (root / "pt", lambda: read_pt(root / "pt", 2)),
            "webdataset npy": (root / "npy", lambda: read_tar(root / "npy", "npy")),
            "webdataset pth": (root / "pth", lambda: read_tar(root / "pth", "pth")),
        }
        for done, write in enumerate(
            (
                lambda: write_cache(root / "cache", count), lambda: write_pt(root / "pt", count),
                lambda: write_tar(root / "npy", count, "npy"), lambda: write_tar(root / "pth", count, "pth"),
            )
        ):  # fmt: skip
            progress("writing", done, 4)
            write()
        for number, (reader, (_, make)) in enumerate(makers.items()):
            progress("comparing every tensor", number, len(makers))
            epoch = make()
            for turn in range(2 if reader == "reelwright" else 1):  # with and without comparing checksums
                compare(epoch(turn), count)
        turns = [*makers, *reversed(makers)]
        for number, reader in enumerate(turns):
            progress("warm and cold epochs", number, len(turns))
            folder, make = makers[reader]
            epoch = make()
            passes.setdefault(f"{reader}, first epoch", []).append(timed(epoch(0), count))
            passes.setdefault(f"{reader}, later epoch", []).append(timed(epoch(1), count))
            kept[reader] = forget(folder)
            passes.setdefault(f"{reader}, cold", []).append(timed(make()(2), count))
    best = {key: max(rate for rate, _ in values) for key, values in passes.items()}
    processor = {key: min(used for _, used in values) for key, values in passes.items()}
    rows = []
    for reader in makers:
        cells = []
        for when in ("first epoch", "later epoch", "cold"):
            figure = best[f"{reader}, {when}"]
            cells.append(f"{figure:,.0f} ({best[f'reelwright, {when}'] / figure:.1f}x)")
        used = "-" if "workers" in reader else f"{processor[f'{reader}, later epoch']:.0f}"
        rows.append([reader, *cells, _percent(kept[reader]), used])
    titles = ["reader", "first epoch", "later epochs", "cold", "still cached", "processor us, later"]
    print_table(titles, rows, f"samples/s, {count} items of 64 KiB, batches of {BATCH}; every tensor bit-equal")
    if arguments.json:
        figures = {"items": count, "batch": BATCH, "passes": passes, "best": best, "processor_us": processor}
        machine = {"cores": os.cpu_count(), "load": [load, os.getloadavg()], "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**figures, **machine, "still_cached": kept}, indent=1), encoding="utf-8")


def _percent(fraction: float | None) -> str:
    return "unknown" if fraction is None else f"{fraction:.0%}"


if __name__ == "__main__":
    main()
