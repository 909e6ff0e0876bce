"""Several runs on one page: may they be compared, what differs, which is better, and is that more than noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reelwright.report.compare_plots import arm_curves
from reelwright.report.page import Page
from reelwright.report.plots import score_bars

TONES = {"larger": True, "equal": None, "not larger": None, "unknown": None}
WORDS = {"larger": "yes", "not larger": "no", "equal": "no, exactly equal", "unknown": "cannot be said"}
MAX_DRAWN = 3  # measures drawn as bars; the table has all
MAX_VIDEO_BYTES = 8_000_000  # of one file: a page of long videos would not open
MIB = 2**20

Facts = Mapping[str, Any]
Videos = Sequence[tuple[str, Sequence[tuple[Path, str]]]]  # what was asked -> (file, arm)


def write_comparison_page(facts: Facts, path: Path, videos: Videos = (), texts: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page of `experiments.comparison.Comparison.to_json()`; parts that are not there are left out.

    videos: for each prompt and seed, one file an arm. texts: (title, text), such as a spec, folded at the end.
    """
    page = Page(str(facts["title"]), _subtitle(facts))
    for warning in facts["warnings"]:
        page.verdict(warning, good=False)
    _answers(page, facts)
    _key_figures(page, facts)
    _differences(page, facts)
    _curves(page, facts)
    _scores(page, facts)
    if videos:
        page.section("What they make", "Equal prompts and seeds, side by side.")
        for asked, files in videos:
            page.text(asked)
            shown = [(file, arm) for file, arm in files if file.stat().st_size <= MAX_VIDEO_BYTES]
            page.videos(shown)
            if len(shown) < len(files):
                page.text(f"{len(files) - len(shown)} videos of more than 8 MB are left out.")
    _other_measures(page, facts)
    _runs(page, facts)
    for title, text in texts:
        page.code(text, title)
    page.write(path)


def _subtitle(facts: Facts) -> str:
    arms = len(facts["arms"])
    seeds = sorted({seed for arm in facts["arms"].values() for seed in arm["seeds"]})
    parts = [f"{len(facts['runs'])} runs", f"{arms} arm{'s' * (arms != 1)}"]
    return " · ".join(parts) + (f" · seeds {', '.join(map(str, seeds))}" if seeds else "")


def _answers(page: Page, facts: Facts) -> None:
    if not facts["answers"]:
        if len(facts["runs"]) > 1 and not facts["experiment"]:
            page.text(
                "No difference is judged: that takes runs of two or more shared seeds on each side. What is below "
                "shows these runs, not what others of the same settings would do."
            )
        return
    page.section("The answer")
    for answer in facts["answers"]:
        page.verdict(answer["sentence"], TONES[answer["verdict"]])
    page.text(facts["method"])


def _key_figures(page: Page, facts: Facts) -> None:
    runs = facts["runs"]
    minutes = [run.get("minutes_in_all") or run.get("minutes_of_training") for run in runs]
    memory = [run["peak_memory_bytes"] for run in runs if run.get("peak_memory_bytes")]
    gpu = [run["peak_gpu_bytes"] for run in runs if run.get("peak_gpu_bytes")]
    figures: dict[str, str] = {"runs with figures": f"{sum(bool(run['measures']) for run in runs)} of {len(runs)}"}
    if any(minutes):
        figures["minutes, all runs"] = f"{sum(value or 0 for value in minutes):.1f}"
    if memory:
        figures["largest memory of a run"] = f"{max(memory) / MIB:,.0f} MiB"
    if gpu:
        figures["largest GPU memory of a run"] = f"{max(gpu) / MIB:,.0f} MiB"
    page.figures(figures)


def _differences(page: Page, facts: Facts) -> None:
    """Only the settings that are not the same in all runs; one row an arm, seeds together."""
    if len(facts["runs"]) < 2:
        return
    changed = {key: values for key, values in facts["differences"].items() if key != "seed"}
    if not changed:
        page.section("What differs", "No setting but the seed.")
        return
    levels = " \N{MIDDLE DOT} ".join(facts["factors"])
    named = f" An arm is named by its levels of {levels}." if facts["experiment"] else ""
    page.section("What differs", f"Every setting that is not the same in all runs; all others are.{named}")
    rows = []
    for arm, group in facts["arms"].items():
        cells = []
        for values in changed.values():
            of_arm = list(dict.fromkeys(_setting(values.get(name)) for name in group["runs"]))
            cells.append(" | ".join(of_arm))
        rows.append([arm, *cells, ", ".join(map(str, group["seeds"]))])
    page.table(["arm", *changed, "seeds"], rows)


def _curves(page: Page, facts: Facts) -> None:
    curves = {
        arm: [[(point[0], point[1]) for point in run["curve"]] for run in facts["runs"] if run["arm"] == arm]
        for arm in facts["arms"]
    }
    if any(point[1] is not None for runs in curves.values() for run in runs for point in run):
        seen = [run["name"] for run in facts["runs"] if run.get("heldout_split") == "train"]
        but = f" Of {', '.join(seen)}: clips of training, as none is held out; it tells memory only." if seen else ""
        page.section("Held-out loss", f"Clips never trained on, at fixed noise and times; one line a run.{but}")
        page.image(arm_curves(curves))


def _scores(page: Page, facts: Facts) -> None:
    """Every measure of every arm: mean over its seeds with Student's t interval."""
    arms = facts["arms"]
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["measures"]))
    if not names:
        return
    page.section(
        "Scores", "Means over seeds with 95 % t intervals (n seeds); one seed has none, few seeds give wide ones."
    )
    drawn = [
        {"metric": name, "row": arm, "value": of["mean"], "low": of["low"], "high": of["high"]}
        for name in names[:MAX_DRAWN]
        for arm, group in arms.items()
        if (of := group["measures"].get(name))
    ]
    page.image(score_bars(drawn))
    page.table(
        ["measure", *arms],
        [[name, *(_with_interval(group["measures"].get(name)) for group in arms.values())] for name in names],
    )


def _other_measures(page: Page, facts: Facts) -> None:
    if not facts["effects"]:
        return
    page.section(
        "Every other measure",
        "The same test on what the answer above is not about. One in twenty of such intervals leaves out zero by "
        "chance: a hint for the next experiment, not a result.",
    )
    page.table(
        ["factor", "measure", "levels", "difference", "interval", "larger than the noise?"],
        [
            [row["factor"], row["measure"], f"{row['level']} minus {row['reference']}", row.get("difference"),
             _interval(row.get("low"), row.get("high")), WORDS[row["verdict"]]]
            for row in facts["effects"]
        ],
    )  # fmt: skip


def _runs(page: Page, facts: Facts) -> None:
    runs = facts["runs"]
    rows = [
        {
            "run": run["name"],
            "state": run["status"],
            "why": run.get("reason") or "; ".join(run["problems"]) or None,
            "held-out loss": run["measures"].get("held-out loss"),
            "minutes of training": run.get("minutes_of_training"),
            "minutes in all": run.get("minutes_in_all"),
            "memory (MiB)": _mib(run.get("peak_memory_bytes")),
            "GPU memory (MiB)": _mib(run.get("peak_gpu_bytes")),
            "data": (run.get("data_sha256") or "")[:8] or None,
            "checker": (run.get("checker") or "")[:8] or None,
        }
        for run in runs
    ]
    page.section(
        "Runs",
        "Minutes are of this machine's clock: other work on it makes them longer. Memory is the largest resident set "
        "of the run's process, known for the runs of an experiment.",
    )
    headers = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    page.table(headers, [[row[name] for name in headers] for row in rows])


def _mib(size: float | None) -> int | None:
    return None if size is None else round(size / MIB)


def _setting(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _with_interval(of: Facts | None) -> str | None:
    if of is None:
        return None
    interval = _interval(of["low"], of["high"])
    return f"{of['mean']:.4g}" + (f" [{interval}]" if interval else "") + f" ({of['n']})"


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.4g}, {high:.4g}"
