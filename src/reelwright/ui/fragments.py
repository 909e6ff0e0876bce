"""Pieces of HTML for the page. Every text of a job, a recipe or a file name goes through `escape`.

Buttons in them carry `data-action` and what it is about; `CLICKS` hands a click to the HTML component's click event.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from reelwright.ui.records import Job

# Listeners on the component, as its inner HTML is replaced at every change. A video plays once it is pointed at.
CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (button) trigger('click', {...button.dataset});
});
element.addEventListener('pointerover', (event) => {
  const video = event.target.closest('video');
  if (video && !video.controls) { video.controls = true; video.play().catch(() => {}); }
});
element.addEventListener('pointerout', (event) => {
  if (event.target.tagName === 'VIDEO') event.target.controls = false;
});
"""
STATES = {
    "queued": "waiting", "running": "running", "done": "done", "failed": "failed", "stopped": "stopped",
    "interrupted": "interrupted",
}  # fmt: skip
KINDS = {
    "generate": "Generate", "refine": "Refine", "noise": "Add noise", "inspect": "Inspect", "prepare": "Prepare",
    "train": "Train", "evaluate": "Evaluate",
}  # fmt: skip
_TEMPLATE_SIGNS = {ord(sign): f"&#{ord(sign)};" for sign in "{}$`@\\"}  # Gradio's HTML values pass a template engine
_SHOWN_CHARACTERS = 2000


def escape(text: object) -> str:
    """Text for HTML, inside an element or a quoted attribute."""
    return html.escape(str(text).replace("\0", "\ufffd"), quote=True).translate(_TEMPLATE_SIGNS)


def notice(text: str, tone: str = "") -> str:
    """A sentence in a box; tone: good, bad or none. Nothing for no text."""
    return f'<div class="rw-notice {tone}" role="status">{escape(text)}</div>' if text else ""


def empty(title: str, lines: Iterable[tuple[str, str]]) -> str:
    """What to do first: (what it does, the command to type) each; no command, a sentence alone."""
    steps = "".join(
        f"<li>{escape(what)}{f'<code>{escape(command)}</code>' if command else ''}</li>" for what, command in lines
    )
    return f'<div class="rw-empty"><b>{escape(title)}</b><ol>{steps}</ol></div>'


def button(label: str, action: str, **data: str) -> str:
    fields = "".join(f' data-{key}="{escape(value)}"' for key, value in data.items())
    return f'<button type="button" class="rw-button" data-action="{escape(action)}"{fields}>{escape(label)}</button>'


def media_address(name: str) -> str:
    """Where the server serves a video of the workspace."""
    return "/media/" + quote(name, safe="/")


def video(name: str, version: float | str = 0, playing: bool = False, heavy: bool = False) -> str:
    """A video by its name in the workspace, looping without sound; `version` changes with the file.

    A heavy one is not fetched before it is pointed at: a browser opens few connections, and the page needs some.
    """
    source = escape(f"{media_address(name)}?v={version}")
    if PurePosixPath(name).suffix.lower() == ".gif":
        return f'<img src="{source}" alt="{escape(name)}" loading="lazy">'
    autoplay, start = (" autoplay", "") if playing else ("", "#t=0.01")  # else some browsers show no picture at all
    fetched = "none" if heavy and not playing else "metadata"
    return f'<video src="{source}{start}" loop muted{autoplay} playsinline preload="{fetched}"></video>'


def video_card(
    name: str,
    recipe: Mapping[str, Any],
    version: float | str = 0,
    buttons: str = "",
    playing: bool = False,
    heavy: bool = False,
) -> str:
    """A video with its prompt, what made it, and its recipe folded away."""
    prompt = recipe.get("prompt") if isinstance(recipe.get("prompt"), str) else ""
    known = [
        f"{label} {recipe[key]}"
        for key, label in (("seed", "seed"), ("steps", "steps"), ("guidance", "guidance"), ("strength", "strength"))
        if isinstance(recipe.get(key), (int, float))
    ]
    title = f'<p class="rw-prompt">{escape(prompt)}</p>' if prompt else ""
    text = json.dumps(recipe, indent=2, ensure_ascii=False, default=str)[:_SHOWN_CHARACTERS] if recipe else ""
    folded = f"<details><summary>Recipe</summary><pre>{escape(text)}</pre></details>" if text else ""
    facts = " · ".join([*known, PurePosixPath(name).name])
    return (
        f'<figure class="rw-card" data-name="{escape(name)}">{video(name, version, playing, heavy)}<figcaption>{title}'
        f'<p class="rw-facts">{escape(facts)}</p>{folded}<div class="rw-buttons">{buttons}</div></figcaption></figure>'
    )


def progress_bar(job: Job) -> str:
    """How far an active job is, as a bar and in words."""
    done, total, text = job.progress.done, job.progress.total, job.progress.text
    if job.state == "queued":
        return '<p class="rw-facts">waiting for the jobs before it</p>'
    share = min(100.0, 100.0 * done / total) if total else 0.0
    count = f" {done:,} of {total:,}" if total else ""
    since = f" · {_duration(time.time() - job.started)}" if job.started else ""
    moving = "" if total else " unknown"
    return (
        f'<div class="rw-bar{moving}" role="progressbar" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i>'
        f'</div><p class="rw-facts rw-progress">{escape(text or "starting")}{count}{since}</p>'
    )


def job_subject(job: Job) -> str:
    """What a job is about, as its user called it."""
    request = job.request
    named = ("prompt", "recipe", "data", "video", "model")
    return str(next((request[name] for name in named if request.get(name)), ""))


def job_card(job: Job) -> str:
    """One job of the list: kind, state, subject, how far or how it ended, what can be done with it."""
    parts = [f'<p class="rw-subject">{escape(job_subject(job)[:300])}</p>']
    if job.active:
        parts.append(progress_bar(job))
        actions = button("Stop", "stop", job=job.id)
    else:
        took = f"took {_duration(job.ended - job.started)}" if job.ended and job.started else ""
        parts.append(f'<p class="rw-facts">{escape(took)}</p>' if took and job.state == "done" else "")
        actions = (
            "" if job.state == "done" else button("Resume" if job.kind == "train" else "Again", "again", job=job.id)
        )
    if job.error:
        parts.append(f'<p class="rw-error">{escape(job.error)}</p>')
    parts += [f'<p class="rw-facts">{escape(note)}</p>' for note in job.notes[:3]]
    return (
        f'<div class="rw-job {job.state}" data-job="{escape(job.id)}"><div class="rw-job-top"><b>{KINDS[job.kind]}</b>'
        f'<span class="rw-state">{STATES[job.state]}</span>{actions}</div>{"".join(parts)}</div>'
    )


def signature(job: Job | None) -> tuple[object, ...]:
    """What changes when a job has to be drawn anew; the seconds it has run count only while it runs."""
    if job is None:
        return ()
    ticking = int(time.time()) if job.state == "running" else 0
    return (job.id, job.state, job.progress, job.outputs, job.error, ticking)


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
