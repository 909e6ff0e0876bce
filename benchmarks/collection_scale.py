"""A collection of ten thousand clips: how long each `prepare` takes, and how much memory it and an epoch need.

    python benchmarks/collection_scale.py OUT [--clips 10000] [--json OUT/scale.json]

Renders the clips once (16 frames of 64x64, the moving shapes), then starts the commands as a user would, each in a
process of its own, and samples the resident memory of that process and of the children it starts:

    first       prepare, nothing there yet
    second      prepare again: nothing changed
    caption     one caption changed
    byte        one byte of one clip changed in place and its old modification time put back
    epoch       all training batches of one epoch, read from the cache in the order training draws them

The sum counts pages that processes share once for each of them, so it is an upper bound. Prints a table, writes JSON
and a plot of memory over time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reelwright.console import print_table

RECIPE = """\
run_dir: {out}/run
cache_dir: {out}/cache
data: {{path: {out}/clips, frames: 16, fps: 8, width: 64, height: 64}}
codec: {{type: pca, block: [4, 8, 8], channels: 96}}
train: {{steps: 1, batch_size: 16, device: cpu, precision: fp32}}
"""
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE_SECONDS = 0.1
COMMAND = [sys.executable, "-m", "reelwright"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, metavar="RECIPE", help=argparse.SUPPRESS)  # the child that reads
    arguments = parser.parse_args()
    if arguments.read:
        read_epoch(arguments.read)
        return
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    recipe = out / "recipe.yaml"
    recipe.write_text(RECIPE.format(out=out), encoding="utf-8")
    subprocess.run([*COMMAND, "shapes", str(out / "clips"), "--clips", str(arguments.clips)], check=True)
    prepare = [*COMMAND, "prepare", str(recipe), "--json"]
    stages = [measured("first", prepare), measured("second", prepare)]
    change_caption(out / "clips" / "captions.json")
    stages.append(measured("caption", prepare))
    change_byte(sorted((out / "clips" / "videos").iterdir())[arguments.clips // 2])
    stages.append(measured("byte", prepare))
    stages.append(measured("epoch", [sys.executable, __file__, str(out), "--read", str(recipe)]))
    show(stages)
    plot(stages, out / "memory.png")
    result = arguments.json or out / "scale.json"
    result.write_text(json.dumps({"clips": arguments.clips, "stages": stages}, indent=1), encoding="utf-8")
    print(f"{result}, {out / 'memory.png'}")


def read_epoch(recipe_path: Path) -> None:
    """Every training batch of one epoch, as `train` loads them."""
    from reelwright.data.buckets import BucketSampler
    from reelwright.prepare import open_prepared
    from reelwright.recipe import Recipe

    recipe = Recipe.load(recipe_path)
    training = open_prepared(recipe).training
    sampler = BucketSampler(training.buckets(), recipe.train.batch_size, recipe.seed)
    started, samples, total = time.perf_counter(), 0, 0.0
    for step in range(-(-len(training) // recipe.train.batch_size)):
        batch = training.load(sampler.batch(step)[1], recipe.seed, recipe.train.caption_dropout)
        total += float(batch.latents.mean.abs().mean())
        samples += len(batch)
    seconds = time.perf_counter() - started
    print(json.dumps({"samples": samples, "seconds_reading": round(seconds, 2), "mean_latent": total}))


def measured(name: str, command: list[str]) -> dict[str, Any]:
    """Run a command to its end; its own report, its wall seconds, and memory as [seconds, own, children's] in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory: list[tuple[float, float, float]] = []
    while process.poll() is None:
        own, children = resident(process.pid), sum(resident(pid) for pid in descendants(process.pid))
        memory.append((round(time.perf_counter() - started, 2), round(own, 1), round(children, 1)))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - started
    assert process.stdout is not None
    printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    report = json.loads(printed)
    report["dropped"] = len(report.get("dropped", []))
    print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    return {"name": name, "seconds": round(seconds, 2), "report": report, "memory": memory}


def resident(pid: int) -> float:
    """MB of a process in memory; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / 2**20
    except (OSError, IndexError):
        return 0.0


def descendants(pid: int) -> list[int]:
    """Every process it started, and theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        direct = [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []
    return direct + [grandchild for child in direct for grandchild in descendants(child)]


def change_caption(path: Path) -> None:
    captions = json.loads(path.read_text(encoding="utf-8"))
    captions[next(iter(captions))] = f"a sentence that was not there before, of {time.time_ns()}"
    path.write_text(json.dumps(captions, indent=1), encoding="utf-8")


def change_byte(video: Path) -> None:
    """A digit of what the encoder wrote of itself: every frame stays, the size too, and the time is put back."""
    stat, data = video.stat(), bytearray(video.read_bytes())
    data[data.index(b"2003-202") + 8] ^= 1
    with video.open("r+b") as file:
        file.write(data)
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def show(stages: list[dict[str, Any]]) -> None:
    rows = []
    for stage in stages:
        sums = [own + children for _, own, children in stage["memory"]]
        quarters = [f"{max(sums[part(sums, q)]):.0f}" for q in range(4)]
        report = stage["report"]
        done = (
            f"{report['encoded']} / {report['texts_encoded']}" if "encoded" in report else f"{report['samples']} read"
        )
        own, children = (max(row[i] for row in stage["memory"]) for i in (1, 2))
        row = [stage["name"], f"{stage['seconds']:.1f}", done, f"{own:.0f}", f"{children:.0f}", f"{max(sums):.0f}"]
        rows.append([*row, " ".join(quarters)])
    headers = [
        "stage",
        "seconds",
        "latents / texts",
        "peak MB",
        "children",
        "sum",
        "sum by quarters of time",
    ]
    print_table(headers, rows)


def part(values: list[float], quarter: int) -> slice:
    """A quarter of a list, never empty."""
    start = quarter * len(values) // 4
    return slice(start, max(start + 1, (quarter + 1) * len(values) // 4))


def plot(stages: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3.6), sharey=True, constrained_layout=True)
    for axis, stage in zip(axes, stages, strict=True):
        seconds, own, children = zip(*stage["memory"], strict=True)
        axis.stackplot(seconds, own, children, labels=["the command", "its children"], colors=["#4c72b0", "#a6c8e8"])
        axis.axhline(1536, color="#c44e52", linewidth=1, linestyle="--", label="1.5 GB")
        axis.set(title=f"{stage['name']}: {stage['seconds']:.1f} s", xlabel="seconds", xlim=(0, max(seconds)))
    axes[0].set_ylabel("resident memory, MB")
    axes[0].legend(loc="upper left")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
