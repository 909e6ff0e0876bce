"""The page: four tabs, the list of jobs beside them, and one timer that renews what changed."""

from __future__ import annotations

from typing import Any

import gradio as gr

from reelwright.ui.data_page import DataPage
from reelwright.ui.desk import Desk, Seen
from reelwright.ui.fragments import escape
from reelwright.ui.generate_page import FIELDS, GeneratePage
from reelwright.ui.jobs import JobQueue
from reelwright.ui.jobs_panel import JobsPanel
from reelwright.ui.refine_page import RefinePage
from reelwright.ui.train_page import TrainPage
from reelwright.ui.workspace import Workspace

TICK_SECONDS, POLL_SECONDS = 1.0, 0.03
MAX_WAITING_EVENTS, EVENTS_AT_ONCE = 500, 12


def build_page(workspace: Workspace, queue: JobQueue) -> gr.Blocks:
    """The page of a workspace. Its state is the queue's and the disk's: any number of them may be open."""
    desk = Desk(workspace, queue)
    with gr.Blocks(title="Reelwright", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f'<div class="rw-head"><h1>Reelwright</h1><span>{escape(workspace.root)}</span></div>')
        seen = gr.State({})
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320), gr.Tabs() as tabs:
                with gr.Tab("Generate", id="generate"):
                    generate = GeneratePage(desk)
                with gr.Tab("Refine", id="refine"):
                    refine = RefinePage(desk)
                with gr.Tab("Data", id="data"):
                    data = DataPage(desk)
                with gr.Tab("Train", id="train"):
                    train = TrainPage(desk)
            with gr.Column(scale=2, min_width=260, elem_classes="rw-panel"):
                jobs = JobsPanel(desk)
        _connect_videos(tabs, generate, refine)

        def refresh(
            seen: Seen, model: str | None, count: int, refine_model: str | None, video: str | None, folder: str | None,
            recipe: str | None, run: str | None,
        ) -> list[Any]:  # fmt: skip
            return [
                seen,
                *jobs.refresh(seen),
                *generate.refresh(seen, model, count),
                *refine.refresh(seen, refine_model, video),
                *data.refresh(seen, folder),
                *train.refresh(seen, recipe, run),
            ]

        inputs = [seen, generate.form["model"], generate.count, refine.form["model"], refine.form["video"], data.data,
                  train.recipe, train.run]  # fmt: skip
        outputs = [seen, *jobs.live, *generate.live, *refine.live, *data.live, *train.live]
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        blocks.load(refresh, inputs, outputs, **options)
        cleared = [*refine.cleared, *data.cleared]  # the browser makes 0 of a number that begins without a value
        blocks.load(lambda: [None for _ in cleared], None, cleared, **options)
        gr.Timer(TICK_SECONDS).tick(refresh, inputs, outputs, **options)
    blocks.queue(max_size=MAX_WAITING_EVENTS, default_concurrency_limit=EVENTS_AT_ONCE, api_open=False)
    blocks._queue.sleep_when_free = POLL_SECONDS  # Gradio's own millisecond costs 5 % of a core when nothing happens
    return blocks


def _connect_videos(tabs: gr.Tabs, generate: GeneratePage, refine: RefinePage) -> None:
    """The buttons under a video: its settings into the form again, or the video into Refine."""
    settings = [generate.form[name] for name in FIELDS]
    picked = [refine.form["video"], refine.form["prompt"]]

    def act(event: gr.EventData) -> list[Any]:
        name, action = str(getattr(event, "name", "")), getattr(event, "action", "")
        if action == "reuse":
            return [gr.Tabs(selected="generate"), *generate.settings_of(name), *(gr.skip() for _ in picked)]
        if action == "refine":
            return [gr.Tabs(selected="refine"), *(gr.skip() for _ in settings), *refine.picked(name)]
        return [gr.skip() for _ in (tabs, *settings, *picked)]

    for source in (generate.gallery, generate.stage, refine.stage):
        source.click(act, None, [tabs, *settings, *picked], show_progress="hidden")
