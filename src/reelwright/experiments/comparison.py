"""Several runs held against one another: arms, scores over seeds, and what may be said of each factor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelwright.experiments.effects import Effect, Pair, interval_over_seeds, paired_effect, sentence
from reelwright.experiments.reading import HELD_OUT, Measured, RunFacts, differing, read_run, unequal
from reelwright.experiments.record import RECORD, Record, RunRecord
from reelwright.run import RunDirectory, finite
from reelwright.types import UsageError

FIRST_CHOICE = (HELD_OUT, "joint accuracy", "own clip is nearest", "PSNR to own clip")
LABEL_LETTERS = 60
MAX_NAMED = 3  # scores in one warning
_NOT_DONE = {
    "failed": "failed",
    "unmeasured": "could not be measured",
    "stopped": "were stopped by a limit",
    "waiting": "have not been run yet",
}
METHOD = (
    "How differences are judged: runs of equal seed and equal other settings are paired, their differences averaged "
    "within a seed (runs of one seed share their first weights, data order and noise), and Student's paired t "
    "interval taken over the seeds. A difference is larger than the noise where its 95 % interval leaves out zero; "
    "with several levels of a factor the intervals are widened so that all hold at once (Bonferroni)."
)


@dataclass(frozen=True)
class Design:
    """How runs are laid out: the levels of every factor, and each run's."""

    factors: dict[str, list[str]]
    levels: dict[str, dict[str, str]]  # run -> factor -> level
    measure: str = "auto"


@dataclass
class Comparison:
    """Everything the page and the terminal show. `runs` are those that were read; `records` an experiment's own."""

    title: str
    runs: list[RunFacts]
    arms: dict[str, list[RunFacts]]
    design: Design
    warnings: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)  # one a level and factor, on the measure in question
    effects: list[dict[str, Any]] = field(default_factory=list)  # of every other measure
    records: dict[str, RunRecord] = field(default_factory=dict)
    out: Path | None = None  # of an experiment

    def to_json(self) -> dict[str, Any]:
        """Plain values: what `--json` prints and the page is made of."""
        changed = differing(self.runs)
        return finite(
            {
                "title": self.title,
                "experiment": self.out is not None,
                "factors": self.design.factors,
                "warnings": self.warnings,
                "answers": self.answers,
                "effects": self.effects,
                "method": METHOD,
                "differences": {
                    key: {run.name: value for run, value in zip(self.runs, values, strict=True)}
                    for key, values in changed.items()
                },
                "arms": {arm: self._arm(runs) for arm, runs in self.arms.items()},
                "runs": self._runs(),
            }
        )

    def _arm(self, runs: Sequence[RunFacts]) -> dict[str, Any]:
        names = dict.fromkeys(name for run in runs for name in run.measures)
        return {
            "runs": [run.name for run in runs],
            "seeds": [run.seed for run in runs],
            "measures": {name: _over_seeds(name, runs) for name in names},
        }

    def _runs(self) -> list[dict[str, Any]]:
        arm_of = {id(run): arm for arm, runs in self.arms.items() for run in runs}
        rows = {run.name: self._run(run, arm_of.get(id(run))) for run in self.runs}
        for name, record in self.records.items():  # those that never came to be have a row as well
            if name not in rows:
                rows[name] = {
                    "name": name,
                    "seed": record.seed,
                    "arm": None,
                    "curve": [],
                    "measures": {},
                    "problems": [],
                }
            row, minutes = rows[name], (record.train_seconds + record.evaluate_seconds) / 60
            row |= {"status": record.status, "reason": record.reason, "minutes_in_all": round(minutes, 2) or None}
            row |= {"peak_memory_bytes": record.peak_memory_bytes, "peak_gpu_bytes": record.peak_gpu_bytes}
        return list(rows.values())

    def _run(self, run: RunFacts, arm: str | None) -> dict[str, Any]:
        return {
            "name": run.name,
            "path": str(run.path),
            "arm": arm,
            "seed": run.seed,
            "status": "finished" if not run.problems else "see problems",
            "reason": "",
            "step": run.step,
            "minutes_of_training": None if run.seconds is None else round(run.seconds / 60, 2),
            "measures": {name: measured.value for name, measured in run.measures.items()},
            "curve": run.curve,
            "heldout_split": run.units[HELD_OUT].get("heldout_split"),
            "data_sha256": run.data_sha256,
            "checker": run.checker,
            "problems": run.problems,
        }


def _over_seeds(name: str, runs: Sequence[RunFacts]) -> dict[str, Any]:
    having = [run.measures[name] for run in runs if name in run.measures]
    values = [measured.value for measured in having]
    over = interval_over_seeds(values, [measured.noise for measured in having], _bounds(having))
    return {**over, "n": len(values), "values": values}


def _bounds(measured: Sequence[Measured]) -> tuple[float, float]:
    """The widest bounds that any of these figures has."""
    return min(one.bounds[0] for one in measured), max(one.bounds[1] for one in measured)


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Read run directories, or one experiment's folder, and judge what can be judged.

    UsageError where a path holds neither, or one run is given twice.
    """
    experiments = [path for path in paths if (path / RECORD).is_file()]
    if experiments:
        if len(paths) > 1:
            raise UsageError(f"{experiments[0]}: an experiment is compared by itself; or name its runs one by one")
        return compare_experiment(experiments[0])
    resolved = [path.resolve() for path in paths]
    if twice := [path for number, path in enumerate(paths) if resolved[number] in resolved[:number]]:
        raise UsageError(f"{twice[0]}: given twice; a run is not compared with itself")
    runs = [read_run(path) for path in paths]
    _distinct_names(runs)
    arms = _arms_by_recipe(runs)
    design = Design({"arm": list(arms)}, {run.name: {"arm": arm} for arm, group in arms.items() for run in group})
    title = f"Comparison of {len(runs)} runs" if len(runs) > 1 else f"One run: {runs[0].name}"
    result = Comparison(title, runs, arms, design)
    _judge(result)
    result.answers = [answer for answer in result.answers if answer["seeds"] > 1]
    return result


def compare_experiment(out: Path) -> Comparison:
    """Of an experiment, finished or not: its runs that finished, laid out by its factors."""
    record = Record.load(out)
    if record is None:
        raise UsageError(f"{out}: no experiment was run here (it has no {RECORD})")
    runs, arms = [], {}
    for name, state in record.runs.items():
        path = out / "runs" / name
        if state.status not in ("done", "trained", "unmeasured") or not RunDirectory(path).exists():
            continue
        facts = read_run(path)
        runs.append(facts)
        arms.setdefault(" \N{MIDDLE DOT} ".join(state.levels.values()), []).append(facts)
    levels = {name: state.levels for name, state in record.runs.items()}
    design = Design(record.factors, levels, record.measure)
    result = Comparison(record.question, runs, arms, design, records=record.runs, out=out)
    for status, what in _NOT_DONE.items():
        names = [name for name, state in record.runs.items() if state.status == status]
        if names:
            result.warnings.append(f"{len(names)} of {len(record.runs)} runs {what}: {', '.join(names)}")
    _judge(result)
    return result


def _distinct_names(runs: Sequence[RunFacts]) -> None:
    """Runs of one name in different folders are told apart by their folders."""
    names = [run.name for run in runs]
    for run, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            run.name = str(run.path)


def _arms_by_recipe(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Runs that differ by their seeds alone are an arm; one of a seed that the arm has already begins another."""
    groups: dict[tuple[str, int], list[RunFacts]] = {}
    for index, run in enumerate(runs):
        earlier = sum((other.arm, other.seed) == (run.arm, run.seed) for other in runs[:index])
        groups.setdefault((run.arm, earlier), []).append(run)
    firsts = [group[0] for group in groups.values()]
    changed = {key: values for key, values in differing(firsts).items() if key != "seed"}
    arms: dict[str, list[RunFacts]] = {}
    for number, group in enumerate(groups.values()):
        words = [f"{key} = {_shown(values[number])}" for key, values in changed.items()]
        label = " \N{MIDDLE DOT} ".join(words)
        if not label or len(label) > LABEL_LETTERS or label in arms:
            label = group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more"
        arms[label] = group
    return arms


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _judge(result: Comparison) -> None:
    """Warn of what makes runs incomparable, and fill in answers and effects."""
    runs = result.runs
    troubled: dict[str, list[str]] = {}
    for run in runs:
        for problem in run.problems:
            troubled.setdefault(problem, []).append(run.name)
    result.warnings += [f"{', '.join(names)}: {problem}" for problem, names in troubled.items()]
    if seen := [run.name for run in runs if run.units[HELD_OUT].get("heldout_split") == "train"]:
        why = "no clip is held out (data.validation = 0); the loss is of training clips"
        result.warnings.append(f"{', '.join(seen)}: {why}")
    if len(runs) < 2:
        return
    result.warnings += _incomparable(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.measures))
    names.sort(key=lambda name: next((i for i, known in enumerate(FIRST_CHOICE) if name.startswith(known)), 9))
    wanted = result.design.measure
    if wanted != "auto":
        chosen = [name for name in names if name == wanted] or [name for name in names if name.startswith(wanted)]
        if not chosen:
            known = ", ".join(names) or "none"
            result.warnings.append(f"measure: '{wanted}' was not measured; there are: {known}")
    else:
        chosen = [name for name in names if not _obstacle_of_all(name, runs)] or names
    for factor, levels in result.design.factors.items():
        if len(levels) < 2:
            continue
        for name in names:
            rows = [_compare_levels(result, factor, levels, level, name) for level in levels[1:]]
            (result.answers if chosen and name == chosen[0] else result.effects).extend(rows)


def _incomparable(runs: Sequence[RunFacts]) -> list[str]:
    found: list[str] = []
    hashes = {run.data_sha256 for run in runs}
    if len(hashes) > 1:
        groups: dict[str, list[str]] = {}
        for run in runs:
            groups.setdefault((run.data_sha256 or "unknown")[:8], []).append(run.name)
        keys = [key for key in differing(runs) if key.split(".")[0] in ("data", "codec", "text")]
        why = f". Settings that make it so: {', '.join(keys)}" if keys else ""
        if not keys and None not in hashes:
            why = ". Their settings agree: the files changed"
        found.append(
            "Different data: these runs were not trained on the same clips, latents and captions; their figures do not "
            "compare. Data hashes: "
            + "; ".join(f"{sha256}: {', '.join(names)}" for sha256, names in groups.items())
            + why
        )
    elif hashes == {None}:
        found.append("The data hash of these runs is unknown: whether they saw the same data cannot be told")
    told: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.measures if name != HELD_OUT):
        if parts := unequal([run.units[name] for run in runs if name in run.measures]):
            told.setdefault(", ".join(parts), []).append(name)
    for parts, names in told.items():
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        found.append(
            f"Scores measured under different conditions ({parts}): do not compare {', '.join(names[:MAX_NAMED])}{more}"
        )
    parts = [part for part in unequal([run.units[HELD_OUT] for run in runs if run.curve]) if part != "data"]
    if parts:
        found.append(f"The held-out losses are not one measure: they differ in {', '.join(parts)}; do not compare them")
    return found


def _obstacle_of_all(measure: str, runs: Sequence[RunFacts]) -> str:
    """Why no two figures of this measure can be held against each other; '' where they can."""
    parts = ", ".join(unequal([run.units[measure] for run in runs if measure in run.measures]))
    if not parts:
        return ""
    if measure == HELD_OUT:
        return f"the runs' held-out losses are not one measure (they differ in {parts})"
    return f"the runs were measured under different conditions ({parts})"


def _compare_levels(result: Comparison, factor: str, levels: Sequence[str], level: str, measure: str) -> dict[str, Any]:
    """One row: a level against the first of its factor, and what may be said of it."""
    reference = levels[0]
    pairs, missing, obstacle = _pairs(result, factor, reference, level, measure)
    row: dict[str, Any] = {"factor": factor, "level": level, "reference": reference, "measure": measure}
    if not pairs:
        text = f"{factor}: '{level}' and '{reference}' have no two finished runs of one seed to compare by {measure}."
        return {**row, "seeds": 0, "verdict": "unknown", "sentence": text}
    obstacle = _obstacle_of_all(measure, result.runs) or obstacle
    if obstacle:
        text = f"{factor}: not judged by {measure}, as {obstacle}."
        return {**row, "seeds": 0, "verdict": "unknown", "sentence": text}
    bounds = _bounds([run.measures[measure] for run in result.runs if measure in run.measures])
    effect = paired_effect(pairs, comparisons=len(levels) - 1, bounds=bounds)
    others = [name for name, known in result.design.factors.items() if name != factor and len(known) > 1]
    text = sentence(factor, level, reference, measure, effect, others)
    if missing:
        text += f" {missing} of {missing + len(pairs)} pairs are missing, as a run of theirs has no such figure."
    return {**row, **_effect(effect), "sentence": text}


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "difference": effect.mean, "low": effect.low, "high": effect.high, "confidence": effect.confidence,
        "standardised": effect.standardised, "seeds": effect.seeds, "pairs": effect.pairs, "verdict": effect.verdict,
    }  # fmt: skip


def _pairs(result: Comparison, factor: str, reference: str, level: str, measure: str) -> tuple[list[Pair], int, str]:
    """Pairs of runs that differ in this factor alone, the number that are missing, and what makes them incomparable."""
    seeds = {run.name: run.seed for run in result.runs} | {name: run.seed for name, run in result.records.items()}
    runs = {_place(result.design.levels[run.name], run.seed, factor): run for run in result.runs}
    places = dict.fromkeys(_place(levels, seeds[name], factor)[1:] for name, levels in result.design.levels.items())
    pairs: list[Pair] = []
    obstacle = ""
    for place in places:
        first, second = runs.get((reference, *place)), runs.get((level, *place))
        if first is None or second is None or measure not in first.measures or measure not in second.measures:
            continue
        if None in (first.data_sha256, second.data_sha256):
            obstacle = "it is not known which data its runs were trained on"
        elif first.data_sha256 != second.data_sha256:
            obstacle = "its runs were trained on different data"
        a, b = first.measures[measure], second.measures[measure]
        pairs.append(Pair(second.seed, a.value, b.value, math.hypot(a.noise, b.noise)))
    return pairs, len(places) - len(pairs), obstacle


def _place(levels: Mapping[str, str], seed: int, factor: str) -> tuple[str, tuple[tuple[str, str], ...], int]:
    """(level of this factor, levels of the others, seed)."""
    return levels[factor], tuple(sorted((name, level) for name, level in levels.items() if name != factor)), seed
