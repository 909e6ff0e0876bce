"""The coverage curve: how well combinations never seen are drawn, by the share of all that training shows.

    python benchmarks/coverage.py [--recipe recipes/shapes-cpu.yaml] [--out coverage] [--json FILE] [--plot FILE.svg]

For each share, by the commands a user types: clips rendered with `--coverage`, the recipe trained on them, evaluated on
the combinations it was shown (`covered`) and on the tenth of all that no share shows (`uncovered`). Every share gets as
many clips and steps. Started again in the same folder it goes on where it was. `KEY=VALUE` overrides the recipe.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reelwright.console import print_table

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
SPLITS = ("covered", "uncovered")


def command(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"$ reelwright {shlex.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "reelwright", *words], check=False).returncode:
        sys.exit(code)  # it has said why


def measure(share: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """The joint accuracy of both splits, and seconds, of one share."""
    folder: Path = arguments.out / f"{share:g}"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done.json"
    recipe = arguments.recipe.read_text(encoding="utf-8")
    settings = [recipe, arguments.clips, arguments.prompts, arguments.seed, *arguments.overrides]
    if done.is_file() and (kept := json.loads(done.read_text(encoding="utf-8")))["settings"] == settings:
        return kept
    data, run, scores = folder / "shapes", folder / "run", folder / "scores.json"
    started, whole = time.perf_counter(), not run.exists()
    seed = ("--seed", arguments.seed)
    command("shapes", data, "--clips", arguments.clips, "--captions", 8, "--coverage", share, *seed)
    where = (f"run_dir={run}", f"cache_dir={folder / 'cache'}", f"data.path={data}", f"seed={arguments.seed}")
    command("train", arguments.recipe, *where, *arguments.overrides)
    trained = time.perf_counter() - started if whole else None  # that of a part of it says nothing
    splits = [word for split in SPLITS for word in ("--split", split)]
    command("evaluate", run, "--metrics", "shapes", "--prompts", arguments.prompts, *splits, "--json", scores)
    figures = {"share": share, "settings": settings, "seconds": trained}
    for score in json.loads(scores.read_text(encoding="utf-8"))["scores"]:
        if (score["row"], score["metric"]) == ("model", "joint accuracy"):
            figures[score["split"]] = {key: score[key] for key in ("value", "low", "high", "n")}
    done.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def plot(points: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for split in SPLITS:
        middle, low, high = ([100 * point[split][key] for point in points] for key in ("value", "low", "high"))
        shares = [100 * point["share"] for point in points]
        axes.fill_between(shares, low, high, alpha=0.2)
        axes.plot(shares, middle, marker="o", label=split)
    axes.set(xlabel="combinations shown in training, %", ylabel="drawn right, %", ylim=(0, 101))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/shapes-cpu.yaml"))
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--prompts", type=int, default=1024, help="of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("coverage"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if not arguments.recipe.is_file():
        parser.error(f"--recipe {arguments.recipe}: there is no such file")
    points = [measure(share, arguments) for share in arguments.shares]
    rows = [
        [f"{point['share']:.0%}", *(
            f"{point[split]['value']:.1%} [{point[split]['low']:.1%}, {point[split]['high']:.1%}]" for split in SPLITS
        ), f"{point['seconds'] / 60:.1f}" if point["seconds"] else None]
        for point in points
    ]  # fmt: skip
    print_table(["combinations shown", "those drawn right", "others drawn right", "minutes"], rows, "Coverage")
    if arguments.json:
        arguments.json.write_text(json.dumps(points, indent=1), encoding="utf-8")
    if arguments.plot:
        plot(points, arguments.plot)


if __name__ == "__main__":
    main()
