"""From mp4 files to cached latents, against the script people write; and decoding alone, against other readers.

    python benchmarks/prepare.py CLIPS [--json FILE] [--rounds 1]

CLIPS is a folder of captioned clips. Wanted of each: 16 frames at 8 fps from its start, short side to 256 and the
centre cropped to 256 x 256, through one and the same codec (PCA, fitted beforehand, not timed).

Whole way, clips a second:
    reelwright prepare   our command's function on an empty cache but for the fit: hashes every file, decodes each whole
                         once to count its frames and look for damage, decodes the windows in child processes with
                         limits, encodes in fp32, stores with checksums, measures the codec, writes the manifest
    the same, inspected  the same when the inspection is there already: what a second size or another codec costs
    usual script         for each clip and each frame OpenCV seeks (CAP_PROP_POS_FRAMES), reads, resizes by area;
                         fp32 encode of one clip at a time; torch.save, one .pt a clip

Decoding alone, the same 16 frames of each clip, one clip after the other where not said otherwise:
    ours, in process     data.decode.read_window, its timestamps known from the inspection
    ours, children       the same through the pool of limited child processes, as `prepare` does
    OpenCV seeking       as in the script
    OpenCV sequential    reads on from the first frame and keeps the wanted ones
    PyAV plain           decodes from the first frame, converts the wanted ones to RGB, stops after the last
    torchcodec           VideoDecoder(path).get_frames_at(indices), approximate seeking (its faster mode)
Every reader is at its defaults for threads (OpenCV takes all cores, torchcodec and ours one a file), and all but ours
resize with OpenCV, by area. Before anything is timed, their pictures are compared with ours: a reader whose worst
frame is below MIN_PSNR has read another frame. They differ by the rounding of colour conversion and chroma
upsampling, and OpenCV knows no tags of colour.

As in our command, torch's idle threads soon sleep (GOMP_SPINCOUNT=3000) instead of spinning; for all ways alike.
Readers take turns A B C ... C B A, `--rounds` times; each figure is the median of its turns. Beside the wall time of
the whole way stands the processor time of all its processes and threads, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read when torch is loaded

import av
import cv2
import numpy as np
import torch

from reelwright.bundle import build_codec
from reelwright.console import print_table
from reelwright.data.decode import read_window
from reelwright.data.inspection import Inspection, Sample
from reelwright.data.sandbox import Decoders
from reelwright.data.windows import WindowReader
from reelwright.metrics.frames import psnr
from reelwright.models.codec import pixels_to_video
from reelwright.prepare import prepare
from reelwright.prepare.pieces import pieces_of
from reelwright.recipe import Recipe

FRAMES, FPS, SIDE = 16, 8.0, 256
MIN_PSNR = 25.0  # of the worst frame of any clip; a neighbouring frame of a moving picture is below that
Read = Callable[[Sample], np.ndarray]  # -> uint8 f h w c
PROCESSOR: dict[str, list[float]] = {}  # processor seconds of each turn of each way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        recipe = make_recipe(arguments.clips, Path(folder) / "fit")
        inspection = prepare(recipe).inspection
        readers, all_frames = make_readers(recipe, inspection, stack)
        agreement = compare(readers, inspection)
        whole = whole_way(recipe, Path(folder), readers["OpenCV seeking"], inspection, arguments.rounds)
        decoding = {name: (lambda read=read: [read(s) for s in inspection.samples]) for name, read in readers.items()}
        alone = in_turns({**decoding, "ours, children": all_frames}, arguments.rounds)
    count = len(inspection.samples)
    figures = {
        "clips": count,
        "processors": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "prepare_clips_per_second": rates(whole, count),
        "prepare_speed_up": round(median(whole["usual script"]) / median(whole["reelwright prepare"]), 2),
        "decode_clips_per_second": rates(alone, count),
        "psnr_to_ours_db": agreement,
        "seconds": {"prepare": whole, "decode": alone},
        "processor_seconds": PROCESSOR,
    }
    for title, turns in (("from mp4 to cached latents", whole), ("decoding alone", alone)):
        best = median(turns["usual script" if "usual script" in turns else "OpenCV seeking"])
        rows = []
        for name, t in turns.items():
            row = [name, f"{count / median(t):.2f}", f"{best / median(t):.2f}x", f"{min(t):.1f}-{max(t):.1f}"]
            rows.append([*row, f"{median(PROCESSOR[name]):.1f}", at(agreement, name)])
        headers = ["way", "clips/s", "ratio", "seconds a turn", "processor s", "PSNR to ours: worst, mean"]
        print_table(headers, rows, title)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def make_recipe(clips: Path, cache: Path) -> Recipe:
    return Recipe.parse(
        {
            "run_dir": str(cache / "run"),
            "cache_dir": str(cache),
            "data": {"path": str(clips), "frames": FRAMES, "fps": FPS, "width": SIDE, "height": SIDE},
            "codec": {"type": "pca", "block": [4, 8, 8], "channels": 96},
            "train": {"device": "cpu", "precision": "fp32"},
        },
        origin="benchmark",
    )


# -- the whole way


def whole_way(recipe: Recipe, folder: Path, seek: Read, inspection: Inspection, rounds: int) -> dict[str, list[float]]:
    numbers = iter(range(1000))

    def ours(*kept: str) -> None:
        cache = folder / f"cache-{next(numbers)}"
        cache.mkdir()
        for name in kept:
            source = recipe.cache_dir / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, cache / name)
        summary = prepare(recipe.model_copy(update={"cache_dir": cache}))
        assert summary.encoded == len(inspection.samples) and not summary.fitted

    codec = build_codec(recipe)

    def script() -> None:
        out = folder / f"script-{next(numbers)}"
        out.mkdir()
        for sample in inspection.samples:
            frames = seek(sample)
            with torch.no_grad():
                latent = codec.encode(pixels_to_video(torch.from_numpy(frames)[None])).mean[0]
            torch.save(latent, out / f"{sample.index}.pt")

    ways = {
        "reelwright prepare": lambda: ours("fitted"),
        "the same, inspected": lambda: ours("fitted", "files.jsonl", "probes.jsonl"),
        "usual script": script,
    }
    return in_turns(ways, rounds)


# -- the readers


def make_readers(recipe: Recipe, inspection: Inspection, stack: ExitStack) -> tuple[dict[str, Read], Callable[[], Any]]:
    """Readers of one sample by name, and a function that reads all of them through the pool."""
    infos = {sample.index: inspection.info(sample) for sample in inspection.samples}
    wanted = {}
    for sample in inspection.samples:
        times = infos[sample.index].timestamps - infos[sample.index].timestamps[0]
        targets = sample.start_seconds + np.arange(FRAMES) / FPS
        wanted[sample.index] = [int(np.abs(times - target).argmin()) for target in targets]

    def ours(sample: Sample) -> np.ndarray:
        return read_window(sample.clip.video, sample.size, FPS, sample.start_seconds, infos[sample.index])

    def seeking(sample: Sample) -> np.ndarray:
        capture = cv2.VideoCapture(str(sample.clip.video))
        pictures = []
        for index in wanted[sample.index]:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            _, picture = capture.read()
            pictures.append(square(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)))
        capture.release()
        return np.stack(pictures)

    def sequential(sample: Sample) -> np.ndarray:
        capture = cv2.VideoCapture(str(sample.clip.video))
        chosen, pictures = set(wanted[sample.index]), {}
        for index in range(max(chosen) + 1):
            if index in chosen:
                pictures[index] = square(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
            else:
                capture.grab()
        capture.release()
        return np.stack([pictures[index] for index in wanted[sample.index]])

    def plain_av(sample: Sample) -> np.ndarray:
        chosen, pictures = set(wanted[sample.index]), {}
        with av.open(str(sample.clip.video)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in chosen:
                    pictures[index] = square(frame.to_ndarray(format="rgb24"))
                if index == max(chosen):
                    break
        return np.stack([pictures[index] for index in wanted[sample.index]])

    readers: dict[str, Read] = {
        "ours, in process": ours,
        "OpenCV seeking": seeking,
        "OpenCV sequential": sequential,
        "PyAV plain": plain_av,
    }
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports] - extra bench
    except (ImportError, RuntimeError) as error:  # it wants a system FFmpeg
        print(f"torchcodec is left out: {str(error).strip().splitlines()[0]}")
    else:

        def torchcodec(sample: Sample) -> np.ndarray:
            decoder = VideoDecoder(str(sample.clip.video), dimension_order="NHWC", seek_mode="approximate")
            return np.stack([square(frame.numpy()) for frame in decoder.get_frames_at(wanted[sample.index]).data])

        readers["torchcodec"] = torchcodec

    decoders = stack.enter_context(Decoders())

    def pooled() -> list[np.ndarray]:
        reader = WindowReader(inspection, decoders)
        pieces = [pieces_of(inspection, s, recipe.data, "")[0] for s in inspection.samples]
        return [frames for _, frames in reader.read(pieces)]

    pooled()  # its children are up
    return readers, pooled


def square(picture: np.ndarray) -> np.ndarray:
    """Short side to SIDE by area, centre cropped: uint8 `h w c`."""
    height, width = picture.shape[:2]
    scale = SIDE / min(height, width)
    resized = cv2.resize(
        picture, (math.ceil(width * scale - 1e-6), math.ceil(height * scale - 1e-6)), interpolation=cv2.INTER_AREA
    )
    top, left = (resized.shape[0] - SIDE) // 2, (resized.shape[1] - SIDE) // 2
    return resized[top : top + SIDE, left : left + SIDE]


def compare(readers: dict[str, Read], inspection: Inspection) -> dict[str, list[float]]:
    """Worst and mean PSNR of each reader's frames to ours. SystemExit where one read another frame."""
    agreement = {}
    for name, read in readers.items():
        values = []
        for sample in inspection.samples:
            expected = readers["ours, in process"](sample)
            found = read(sample)
            assert found.shape == expected.shape, f"{name}, {sample.clip.id}: {found.shape}"
            values += [min(100.0, psnr(a, b)) for a, b in zip(found, expected, strict=True)]
        agreement[name] = [round(min(values), 2), round(float(np.mean(values)), 2)]
        if min(values) < MIN_PSNR:
            raise SystemExit(f"{name}: its worst frame has {min(values):.1f} dB to ours: not the same frame")
    return agreement


# -- turns


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each way's turns, A B C C B A; in `PROCESSOR` those of processors, of children that ended too."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name in order(list(ways), rounds):
        started, before = time.perf_counter(), sum(os.times()[:4])
        ways[name]()
        seconds[name].append(round(time.perf_counter() - started, 3))
        PROCESSOR.setdefault(name, []).append(round(sum(os.times()[:4]) - before, 3))
    return seconds


def order(names: list[str], rounds: int) -> Iterator[str]:
    for _ in range(rounds):
        yield from names
        yield from reversed(names)


def median(values: list[float]) -> float:
    return statistics.median(values)


def rates(turns: dict[str, list[float]], count: int) -> dict[str, float]:
    return {name: round(count / median(values), 2) for name, values in turns.items()}


def at(agreement: dict[str, list[float]], name: str) -> str:
    return ", ".join(f"{value:.1f}" for value in agreement[name]) if name in agreement else ""


if __name__ == "__main__":
    main()
