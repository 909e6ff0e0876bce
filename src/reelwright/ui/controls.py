"""Parts that several tabs have: the model picker, sampling settings, and the stage that shows a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from reelwright.diffusion.sampler import SAMPLERS
from reelwright.types import UserError
from reelwright.ui.catalogue import ModelEntry
from reelwright.ui.desk import Desk
from reelwright.ui.fragments import KINDS, STATES, button, escape, notice, progress_bar, video_card
from reelwright.ui.records import Job
from reelwright.video.write import FORMATS, read_recipe

MAX_SEED = 2**53 - 1  # what a browser's number holds exactly
SAMPLER_CHOICES = list(SAMPLERS)
FIRST_STEPS = [
    ("Render clips with captions to learn from:", "reelwright shapes data/shapes --clips 3000"),
    ("Make a project folder for your own clips instead:", "reelwright init my-project"),
    ("Train on them, here on the Train tab or with", "reelwright train my-project/recipe.yaml"),
    ("Or let one command do it all, on rendered clips, in minutes:", "reelwright demo"),
]


def model_label(entry: ModelEntry) -> str:
    """The model's name and how far it was trained."""
    step = f", step {entry.step:,}" if entry.step else ""
    return f"{entry.name} ({entry.kind}{step})"


def model_choices(desk: Desk) -> list[tuple[str, str]]:
    return [(model_label(entry), entry.name) for entry in desk.models()]


def model_update(desk: Desk, chosen: str | None) -> Any:
    """The picker's choices as they are now; the choice stays while it is there, else the first is taken."""
    choices = model_choices(desk)
    names = [name for _, name in choices]
    if chosen in names:
        return gr.update(choices=choices)
    return gr.update(choices=choices, value=names[0] if names else None)


def defaults_of(desk: Desk, name: str | None) -> dict[str, Any]:
    """Sampling settings of a model, {} where it is not there any more."""
    return next((entry.defaults for entry in desk.models() if entry.name == name), {})


def number(label: str, value: float | None = None, whole: bool = True, **options: Any) -> gr.Number:
    return gr.Number(value, label=label, precision=0 if whole else None, min_width=100, **options)


def stage(desk: Desk, job: Job | None, nothing: str, buttons: Sequence[str] = ("reuse", "refine")) -> str:
    """A job as the middle of a tab shows it: how far it is, what it made, or why not."""
    if job is None:
        return f'<div class="rw-stage"><p class="rw-faint">{escape(nothing)}</p></div>'
    job = desk.told(job)
    parts = [f'<p class="rw-title">{KINDS[job.kind]}: {STATES[job.state]}</p>']
    if job.request.get("prompt"):
        parts.append(f'<p class="rw-prompt">{escape(job.request["prompt"])}</p>')
    if job.active:
        parts.append(progress_bar(job))
    if job.error:
        parts.append(notice(job.error, "bad" if job.state == "failed" else ""))
    parts += [notice(note) for note in job.notes]
    cards = [output_card(desk, name, buttons) for name in job.outputs if name.lower().endswith(FORMATS)]
    grid = f'<div class="rw-grid">{"".join(cards)}</div>' if cards else ""
    return f'<div class="rw-stage {job.state}" data-job="{escape(job.id)}">{"".join(parts)}{grid}</div>'


def output_card(desk: Desk, name: str, buttons: Sequence[str] = ("reuse", "refine")) -> str:
    """A video that a job made; a sentence in its place where it is gone."""
    labels = {"reuse": "Use these settings", "refine": "Refine"}
    try:
        path = desk.workspace.resolve(name, "video")
        recipe, version = read_recipe(path), path.stat().st_mtime_ns
    except (UserError, OSError) as error:
        return notice(str(error), "bad")
    offered = "".join(button(labels[action], action, name=name) for action in buttons)
    return video_card(name, recipe, version, offered, playing=True)
