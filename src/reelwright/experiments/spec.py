"""An experiment's spec: a question, a base recipe, what is varied, with which seeds, and how it is measured."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from reelwright.config import Config, apply_override, flatten, read_yaml
from reelwright.recipe import Recipe
from reelwright.types import UsageError

SPEC_FILE = "experiment.yaml"
VARIANT = "variant"  # the one factor of a spec that lists its runs instead of crossing factors
OWN_KEYS = {  # what the experiment sets by itself
    "run_dir": "every run has its own under runs/; leave it out",
    "seed": "name the seeds under seeds:",
}
MAX_NAME = 120  # letters of a run's name, which is a folder


class EvaluateConfig(Config):
    """What `reelwright evaluate` measures of every finished run."""

    metrics: tuple[str, ...] = Field(default=("auto",), min_length=1)
    prompts: int = Field(default=64, ge=2)  # a split; the same ones for every run
    splits: tuple[str, ...] = ()  # of the shapes benchmark; all by default
    seed: int = Field(default=0, ge=0)
    sampler: str | None = None  # the recipe's `sampling` where null, as the next two
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = Field(default=None, ge=0)
    clip: str | None = None  # CLIP of the clip score
    features: str | None = None  # network of the Frechet distance

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        from reelwright.evaluate import METRICS

        if unknown := [name for name in metrics if name not in (*METRICS, "auto")]:
            raise ValueError(f"metrics: '{unknown[0]}' is not one; known: auto, {', '.join(METRICS)}")
        return metrics


class LimitsConfig(Config):
    """What the experiment may cost."""

    runs: int = Field(default=64, ge=1)  # a larger grid is refused before anything runs
    minutes_a_run: float | None = Field(default=None, gt=0)  # of training; a run that needs more is stopped, saved
    minutes: float | None = Field(default=None, gt=0)  # of this call; no run is started after them


class Variant(Config):
    """One of a list of named override sets."""

    name: str = Field(min_length=1)
    overrides: tuple[str, ...] = ()


class Spec(Config):
    """`experiment.yaml`. Paths of the spec start at its own folder."""

    question: str
    base: Path  # the recipe every run starts from
    paths_from: Literal["here", "spec"] = "here"  # where the recipe's relative paths start: as for `train`, or the spec
    out: Path = Path()  # runs/, logs/, experiment.json and compare.html go here
    overrides: tuple[str, ...] = ()  # of every run: key=value
    factors: dict[str, dict[str, tuple[str, ...]] | list[Any]] | list[Variant]
    seeds: tuple[int, ...] = (0,)
    evaluate: EvaluateConfig | None = EvaluateConfig()  # null: the held-out loss of training is all
    measure: str = "auto"  # the figure the answer is about; auto: held-out loss, else the first comparable score
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="before")
    @classmethod
    def _levels_are_named_by_text(cls, values: Any) -> Any:
        """YAML reads the level `0:` as a number, `off:` as false, and one override as a text."""
        factors = values.get("factors") if isinstance(values, dict) else None
        if not isinstance(factors, dict):
            return values
        named = {
            str(factor): {_level(factor, name): _listed(sets) for name, sets in levels.items()}
            if isinstance(levels, dict)
            else levels
            for factor, levels in factors.items()
        }
        return {**values, "factors": named}

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds = {list(seeds)}: at least one, none below 0, none twice")
        return seeds

    @field_validator("factors")
    @classmethod
    def _factors_have_levels(cls, factors: Any) -> Any:
        if not factors:
            raise ValueError("factors: at least one, for example 'train.learning_rate: [1.0e-4, 1.0e-3]'")
        for name, levels in factors.items() if isinstance(factors, dict) else [(VARIANT, factors)]:
            if len(levels) < 2:
                raise ValueError(f"{name} has {len(levels)} level: there is nothing to compare; give two or more")
        return factors


def _level(factor: object, name: object) -> str:
    if isinstance(name, bool) or name is None:
        raise ValueError(f"factors.{factor}: YAML reads a level's name as {name!r}; put it in quotes")
    return str(name)


def _listed(overrides: Any) -> Any:
    return [overrides] if isinstance(overrides, str) else [] if overrides is None else overrides


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment: which level of every factor, which seed, and the whole recipe of it."""

    name: str
    levels: dict[str, str]
    seed: int
    overrides: tuple[str, ...]  # over the base recipe, seed included
    recipe: Recipe = field(compare=False)


@dataclass(frozen=True)
class Experiment:
    """A spec with everything settled that can be before a run starts."""

    spec: Spec
    path: Path  # of the spec
    out: Path  # absolute
    folder: Path  # absolute: where the recipes' relative paths start
    factors: dict[str, tuple[str, ...]]  # factor -> its levels, the first one being the reference
    runs: tuple[PlannedRun, ...]


def load_experiment(path: Path) -> Experiment:
    """Read a spec (or the `experiment.yaml` of a folder) and check every run of it; nothing is written.

    UsageError: an unknown key or a wrong value of the spec or of any run's recipe, two runs of one name or of one
    recipe, more runs than limits.runs, data that is not there.
    """
    path = path / SPEC_FILE if path.is_dir() else path
    if not path.exists():
        raise UsageError(
            f"{path}: no such file; give an experiment's spec, or begin one: reelwright experiment new DIR"
        )
    spec = Spec.load(path)
    home = path.resolve().parent
    base = home / spec.base
    values = read_yaml(base)
    factors = _levels(spec)
    count = len(spec.seeds)
    for levels in factors.values():
        count *= len(levels)
    if count > spec.limits.runs:
        sizes = " x ".join(str(len(levels)) for levels in factors.values())
        raise UsageError(
            f"{path}: {sizes} levels x {len(spec.seeds)} seeds are {count} runs, limits.runs = {spec.limits.runs}; "
            "vary less, or raise limits.runs"
        )
    out = (home / spec.out).resolve()
    runs = []
    for chosen in itertools.product(*(levels.items() for levels in factors.values())):
        named = dict(zip(factors, (name for name, _ in chosen), strict=True))
        varied = [override for _, overrides in chosen for override in overrides]
        for seed in spec.seeds:
            runs.append(_plan(path, base, values, spec, named, varied, seed, out))
    _check_distinct(path, runs)
    folder = home if spec.paths_from == "spec" else Path.cwd()
    for data in {run.recipe.data.path for run in runs}:
        if not (folder / data).exists():
            raise UsageError(
                f"{path}: data.path = {data}: no such folder in {folder}; relative paths of the recipe start there "
                f"(paths_from = {spec.paths_from})"
            )
    return Experiment(spec, path, out, folder, {name: tuple(levels) for name, levels in factors.items()}, tuple(runs))


def _levels(spec: Spec) -> dict[str, dict[str, tuple[str, ...]]]:
    """{factor: {level: overrides}}, whichever of the three ways it was written in."""
    if isinstance(spec.factors, list):
        names = [variant.name for variant in spec.factors]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"factors: the name '{twice[0]}' is given twice; each variant needs its own")
        return {VARIANT: {variant.name: variant.overrides for variant in spec.factors}}
    result: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, levels in spec.factors.items():
        if isinstance(levels, dict):
            result[name] = {level: tuple(overrides) for level, overrides in levels.items()}
            continue
        shown = [value if isinstance(value, str) else json.dumps(value) for value in levels]
        if twice := sorted({value for value in shown if shown.count(value) > 1}):
            raise UsageError(f"factors.{name}: the value {twice[0]} is given twice")
        result[name] = {text: (f"{name}={json.dumps(value)}",) for text, value in zip(shown, levels, strict=True)}
    return result


def _plan(
    path: Path,
    base: Path,
    values: Mapping[str, Any],
    spec: Spec,
    levels: dict[str, str],
    varied: Sequence[str],
    seed: int,
    out: Path,
) -> PlannedRun:
    name = run_name(levels, seed)
    if len(name) > MAX_NAME:
        raise UsageError(f"{path}: the run '{name[:60]}...' has a name of {len(name)} letters; at most {MAX_NAME}")
    overrides = (*spec.overrides, *varied, f"seed={seed}")
    for override in overrides[:-1]:
        key = override.partition("=")[0].strip()
        if key in OWN_KEYS:
            raise UsageError(f"{path}: '{override}': {OWN_KEYS[key]}")
    changed = copy.deepcopy(dict(values))
    for override in overrides:
        apply_override(changed, override)
    changed["run_dir"] = str(out / "runs" / name)
    return PlannedRun(name, levels, seed, overrides, Recipe.parse(changed, f"{path}, run {name} over {base.name}"))


def run_name(levels: Mapping[str, str], seed: int) -> str:
    """A folder's name that a shell takes as it is: learning-rate=0.001,attention=auto,seed=0."""
    return ",".join(f"{_plain(name)}={_plain(level)}" for name, level in [*levels.items(), ("seed", str(seed))])


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "-"


def _check_distinct(path: Path, runs: Sequence[PlannedRun]) -> None:
    """UsageError where two runs would be one folder or one and the same run."""
    names: dict[str, PlannedRun] = {}
    recipes: dict[str, PlannedRun] = {}
    for run in runs:
        if (other := names.setdefault(run.name, run)) is not run:
            raise UsageError(f"{path}: {other.levels} and {run.levels} would both be the run '{run.name}'; rename one")
        plain = {
            key: value for key, value in flatten(run.recipe.plain()).items() if key not in ("run_dir", "cache_dir")
        }
        if (other := recipes.setdefault(json.dumps(plain, sort_keys=True), run)) is not run:
            raise UsageError(
                f"{path}: the runs '{other.name}' and '{run.name}' have the same recipe: what a factor sets "
                "must change something (is it overridden elsewhere, or the default?)"
            )
