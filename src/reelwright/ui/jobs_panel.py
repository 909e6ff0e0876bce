"""The list of jobs, beside every tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from reelwright.types import UserError
from reelwright.ui.desk import Desk, Seen
from reelwright.ui.fragments import CLICKS, job_card, notice, signature

MAX_SHOWN = 30


class JobsPanel:
    """Built in a column of its own."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        gr.HTML('<p class="rw-title">Jobs</p>')
        self.said = gr.HTML(elem_id="jobs-said")
        self.list = gr.HTML(elem_id="jobs", js_on_load=CLICKS)
        self.live = [self.list]
        self.list.click(self._act, None, self.said)

    def _act(self, event: gr.EventData) -> str:
        return act(self._desk, getattr(event, "action", ""), str(getattr(event, "job", "")))

    def refresh(self, seen: Seen) -> list[Any]:
        jobs = self._desk.queue.list()[:MAX_SHOWN]
        return [self._desk.when_changed(seen, "jobs", [signature(job) for job in jobs], self._drawn)]

    def _drawn(self) -> str:
        jobs = self._desk.queue.list()
        cards = [job_card(self._desk.told(job)) for job in sorted(jobs, key=lambda job: not job.active)[:MAX_SHOWN]]
        return f'<div class="rw-jobs">{"".join(cards)}</div>' if cards else '<p class="rw-faint">None yet.</p>'


def act(desk: Desk, action: str, job_id: str) -> str:
    """Stop a job or ask for it again; the notice that tells how that went."""
    try:
        job = desk.queue.get(job_id)
        if action == "stop":
            desk.queue.stop(job_id)
            how = "It saves before it ends." if job.kind == "train" and job.state == "running" else ""
            return notice(f"Asked to stop. {how}".strip())
        if action == "again" and not job.active:
            desk.queue.submit(job.kind, job.request)
            return notice("Queued again.", "good")
    except UserError as error:
        return notice(str(error), "bad")
    return ""
