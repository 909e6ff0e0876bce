"""Commands that run several recipes and hold runs against one another: experiment, compare."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reelwright.cli.app import Group, app
from reelwright.cli.options import JsonFlag
from reelwright.console import Progress, print_error, print_table
from reelwright.signals import INTERRUPTED

if TYPE_CHECKING:
    from reelwright.experiments.comparison import Comparison
    from reelwright.experiments.spec import Experiment

COMPARE_PAGE = "compare.html"


class _RunByDefault(Group):
    """`experiment SPEC` is `experiment run SPEC`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


experiment = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="One question, several runs: `experiment SPEC` runs them, `experiment new DIR` begins one.",
)
app.add_typer(experiment, name="experiment")


@experiment.command()
def new(folder: Annotated[Path, typer.Argument(metavar="DIR", help="the new experiment's folder")]) -> None:
    """A folder with a question, a recipe and clips of moving shapes, which runs as it is."""
    from reelwright.experiments.template import create_experiment

    for line in create_experiment(folder):
        print(line)


@experiment.command()
def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="a spec (YAML), or the folder with its experiment.yaml")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the runs and what they change; run nothing")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run every run of a spec, then compare them on one page. Run it again: it goes on where it stopped."""
    from reelwright.experiments.runner import run_experiment
    from reelwright.experiments.spec import load_experiment

    planned = load_experiment(spec)
    if dry_run:
        _print_plan(planned, as_json)
        return
    with Progress(quiet=as_json) as progress:
        outcome = run_experiment(planned, progress)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    compared = _compare([planned.out], planned.out / COMPARE_PAGE, (), as_json, planned.path)
    if outcome.out_of_time:
        print_error(f"limits.minutes = {planned.spec.limits.minutes:g} are over; the same command goes on")
    if outcome.failed:
        print_error(f"{len(outcome.failed)} of {len(compared.records)} runs failed; see {planned.out / 'logs'}")
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories, or one experiment's folder")],
    out: Annotated[Path | None, typer.Option(help="the page; compare.html here, or in the experiment's folder")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="make videos of this prompt, in place of the samples")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Runs side by side on one offline page: what differs, curves, scores over seeds, videos, time and memory."""
    from reelwright.experiments.record import RECORD

    folder = runs[0] if len(runs) == 1 and (runs[0] / RECORD).is_file() else Path()
    _compare(runs, out or folder / COMPARE_PAGE, tuple(prompt or ()), as_json)


def _compare(
    paths: list[Path], page: Path, prompts: tuple[str, ...], as_json: bool, spec: Path | None = None
) -> Comparison:
    from reelwright.experiments.comparison import compare_runs
    from reelwright.experiments.videos import side_by_side
    from reelwright.report.compare_page import write_comparison_page

    with Progress(quiet=as_json) as progress, tempfile.TemporaryDirectory() as folder:
        compared = compare_runs(paths)
        videos, notes = side_by_side(compared.arms, Path(folder), progress, prompts)
        compared.warnings += notes
        texts = [("spec", spec.read_text(encoding="utf-8"))] if spec else []
        facts = compared.to_json()
        write_comparison_page(facts, page, videos, texts)
    if as_json:
        print(json.dumps({**facts, "page": str(page)}, indent=1, allow_nan=False))
        return compared
    _print_comparison(facts)
    print(f"page: {page}")
    return compared


def _print_comparison(facts: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name for arm in facts["arms"].values() for name in arm["measures"]))[:4]
    rows = []
    for arm, group in facts["arms"].items():
        cells = []
        for name in names:
            of = group["measures"].get(name)
            interval = f" [{of['low']:.4g}, {of['high']:.4g}]" if of and of["low"] is not None else ""
            cells.append("-" if of is None else f"{of['mean']:.4g}{interval}")
        rows.append([arm, len(group["seeds"]), *cells])
    if rows:
        print_table(["arm", "seeds", *names], rows, facts["title"])
        print()
    for warning in facts["warnings"]:
        print(f"Warning: {warning}")
    for answer in facts["answers"]:
        print(answer["sentence"])


def _print_plan(planned: Experiment, as_json: bool) -> None:
    from reelwright.experiments.record import Record

    begun = Record.load(planned.out)
    states = {name: run.status for name, run in begun.runs.items()} if begun else {}
    if as_json:
        runs = [
            {"name": run.name, "levels": run.levels, "seed": run.seed, "overrides": list(run.overrides),
             "status": states.get(run.name, "waiting")}
            for run in planned.runs
        ]  # fmt: skip
        print(json.dumps({"question": planned.spec.question, "out": str(planned.out), "runs": runs}, indent=1))
        return
    rows = [[run.name, " ".join(run.overrides), states.get(run.name, "waiting")] for run in planned.runs]
    print_table(["run", "changes", "state"], rows, planned.spec.question)
    print(f"\n{len(planned.runs)} runs over {planned.spec.base}, to be written to {planned.out}")
