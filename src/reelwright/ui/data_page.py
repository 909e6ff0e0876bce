"""The tab Data: what of a folder would be trained on, what not, and why, with pictures."""

from __future__ import annotations

from typing import Any

import gradio as gr

from reelwright.ui.controls import number, stage
from reelwright.ui.desk import Desk, Seen
from reelwright.ui.fragments import empty, escape, job_subject, notice, signature
from reelwright.ui.media import inspection_page

FIELDS = ("data", "frames", "fps", "width", "height")
_NO_DATA = [
    ("Copy a folder of clips with captions into the workspace: name.mp4 beside name.txt, or a captions.json.", ""),
    ("Or render some:", "reelwright shapes data/shapes --clips 3000"),
]


class DataPage:
    """Built inside a tab. `live` is what `refresh` renews at every tick."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        with gr.Column(elem_classes="rw-panel rw-form"):
            with gr.Row(equal_height=False):
                self.data = gr.Dropdown(
                    [], value=None, label="Folder or recipe", scale=3, min_width=240,
                    allow_custom_value=True, elem_id="data-folder", info="a name inside the workspace",
                )  # fmt: skip
                self.numbers = [
                    number(label, None, whole=name != "fps", info="empty: as it is set")
                    for name, label in (("frames", "Frames"), ("fps", "Frames / s"), ("width", "Width"),
                                        ("height", "Height"))
                ]  # fmt: skip
            self.go = gr.Button("Inspect", variant="primary", elem_id="data-go")
            self.said = gr.HTML(elem_id="data-said")
        self.stage = gr.HTML(elem_id="data-stage")
        self.live = [self.data, self.stage]
        self.cleared = self.numbers
        self.go.click(self._inspect, [self.data, *self.numbers], self.said)

    def _choices(self) -> list[tuple[str, str]]:
        folders = [(f"{entry.name} ({entry.videos:,} videos)", entry.name) for entry in self._desk.data_folders()]
        return folders + [(f"{entry.name} (recipe)", entry.name) for entry in self._desk.recipes()]

    def _inspect(self, *values: Any) -> str:
        request = {name: value for name, value in zip(FIELDS, values, strict=True) if value not in (None, "")}
        if "data" not in request:
            return notice("Choose a folder of clips or a recipe.", "bad")
        return self._desk.submitted("inspect", request, "Queued. Every clip is opened, which may take a while.")

    def refresh(self, seen: Seen, chosen: str | None) -> list[Any]:
        """What `live` shows now."""
        desk, choices = self._desk, self._choices()
        job = desk.latest("inspect")

        def renewed() -> Any:
            return gr.update(choices=choices) if chosen else gr.update(choices=choices, value=choices[0][1])

        return [
            desk.when_changed(seen, "data.choices", choices, renewed if choices else gr.skip),
            desk.when_changed(seen, "data.stage", (signature(job), bool(choices)), lambda: self._stage(bool(choices))),
        ]

    def _stage(self, any_data: bool) -> str:
        desk, job = self._desk, self._desk.latest("inspect")
        if job is None:
            return "" if any_data else empty("No captioned clips in this workspace yet", _NO_DATA)
        if job.state != "done":
            return stage(desk, job, "")
        title = f'<p class="rw-title">{escape(job_subject(job))}</p>'
        if inspection_page(desk.workspace, desk.queue, job.id) is None:
            return title + notice("Its report is no longer there: inspect again.")
        return (
            f'{title}<iframe class="rw-report" src="/inspection/{escape(job.id)}" sandbox '
            f'title="Inspection of {escape(job_subject(job))}"></iframe>'
        )
