"""The tab Refine: a video, picked or uploaded, a prompt and a strength -> a refined one, or one with noise added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from reelwright.types import UserError
from reelwright.ui.controls import MAX_SEED, SAMPLER_CHOICES, model_choices, model_update, number, stage
from reelwright.ui.desk import Desk, Seen
from reelwright.ui.fragments import CLICKS, escape, notice, signature, video
from reelwright.ui.incoming import clear_incoming
from reelwright.ui.requests import MAX_PROMPT_CHARACTERS
from reelwright.ui.workspace import VIDEO_SUFFIXES

FIELDS = ("model", "video", "strength", "seed", "prompt", "negative_prompt", "steps", "guidance", "sampler",
          "already_noisy")  # fmt: skip
NOISE_FIELDS = FIELDS[:4]
MAX_PICKED = 100


class RefinePage:
    """Built inside a tab. `live` is what `refresh` renews at every tick."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300, elem_classes="rw-panel rw-form"):
                self.form: dict[str, Any] = self._build_form()
                with gr.Row():
                    self.go = gr.Button("Refine", variant="primary", elem_id="refine-go")
                    self.noise = gr.Button("Only add noise", elem_id="noise-go")
                self.said = gr.HTML(elem_id="refine-said")
            with gr.Column(scale=6, min_width=300, elem_classes="rw-panel"):
                self.shown = gr.HTML(elem_id="refine-input", js_on_load=CLICKS)
                self.stage = gr.HTML(elem_id="refine-stage", js_on_load=CLICKS)
        self.live = [self.form["model"], self.form["video"], self.stage]
        self.cleared = [self.form["steps"], self.form["guidance"]]
        self._connect()

    def _build_form(self) -> dict[str, Any]:
        form: dict[str, Any] = {}
        form["video"] = gr.Dropdown([], value=None, label="Video", elem_id="refine-video")
        most = self._desk.workspace.max_upload_bytes >> 20
        self.upload = gr.UploadButton(
            f"Upload a video (at most {most} MiB)", file_types=list(VIDEO_SUFFIXES), size="sm", elem_id="refine-upload"
        )
        form["model"] = gr.Dropdown([], value=None, label="Model")
        form["prompt"] = gr.Textbox(
            label="Prompt", lines=3, max_length=MAX_PROMPT_CHARACTERS, placeholder="What the video shows",
            elem_id="refine-prompt",
        )  # fmt: skip
        form["strength"] = gr.Slider(
            0,
            1,
            value=0.3,
            step=0.01,
            label="Strength",
            info="0: the codec's round trip; 1: nothing of the input stays",
        )
        with gr.Accordion("More settings", open=False):
            form["negative_prompt"] = gr.Textbox(label="Negative prompt", max_length=MAX_PROMPT_CHARACTERS)
            with gr.Row():
                form["steps"] = number("Steps", None, minimum=1, maximum=1000, info="empty: as the model")
                form["guidance"] = number(
                    "Guidance", None, whole=False, minimum=0, maximum=100, info="empty: as the model"
                )
            with gr.Row():
                form["seed"] = number("Seed", 0, minimum=0, maximum=MAX_SEED)
                form["sampler"] = gr.Dropdown(
                    [("as the model", ""), *((name, name) for name in SAMPLER_CHOICES)],
                    value="",
                    label="Sampler",
                    min_width=100,
                )
            form["already_noisy"] = gr.Checkbox(False, label="The video is noisy already: add none")
        return form

    def _connect(self) -> None:
        self.go.click(self._refine, [self.form[name] for name in FIELDS], self.said)
        self.noise.click(self._add_noise, [self.form[name] for name in NOISE_FIELDS], self.said)
        self.upload.upload(self._take_upload, self.upload, [self.form["video"], self.said])
        self.form["video"].change(self._show, self.form["video"], self.shown)

    def _refine(self, *values: Any) -> str:
        request = {name: value for name, value in zip(FIELDS, values, strict=True) if value not in (None, "")}
        if missing := self._missing(request):
            return notice(missing, "bad")
        if not str(request.get("prompt", "")).strip():
            return notice("Say in the prompt what the refined video shows.", "bad")
        return self._desk.submitted("refine", request, "Queued. It goes on if you close this page.")

    def _add_noise(self, *values: Any) -> str:
        request = {name: value for name, value in zip(NOISE_FIELDS, values, strict=True) if value is not None}
        if missing := self._missing(request):
            return notice(missing, "bad")
        return self._desk.submitted("noise", request, "Queued. It goes on if you close this page.")

    def _missing(self, request: dict[str, Any]) -> str:
        if not request.get("model"):
            return "There is no model yet: train one first."
        return "" if request.get("video") else "Choose a video, or upload one."

    def _take_upload(self, file: Any) -> tuple[Any, str]:
        """From where Gradio put it into uploads/, checked; its first copy is removed."""
        arrived = Path(str(file))
        try:
            stored = self._desk.workspace.store_upload(arrived, arrived.name)
        except UserError as error:
            return gr.skip(), notice(str(error), "bad")
        finally:
            self._forget(arrived)
        name = self._desk.workspace.relative(stored)
        return gr.update(choices=self._names(), value=name), notice(f"Stored as {name}.", "good")

    def _forget(self, arrived: Path) -> None:
        if arrived.resolve().is_relative_to(self._desk.workspace.upload_folder.resolve()):
            arrived.unlink(missing_ok=True)
        clear_incoming(self._desk.workspace.upload_folder)

    def _show(self, name: str | None) -> str:
        if not name:
            return ""
        try:
            modified = self._desk.workspace.resolve(name, "video").stat().st_mtime_ns
        except UserError as error:
            return notice(str(error), "bad")
        caption = f'<figcaption><p class="rw-facts">{escape(name)}</p></figcaption>'
        return (
            '<p class="rw-title">Input</p><div class="rw-stage"><div class="rw-grid">'
            f'<figure class="rw-card">{video(name, modified, playing=True)}{caption}</figure></div></div>'
        )

    def _names(self) -> list[str]:
        """What can be picked: made videos and uploads, the newest first."""
        desk = self._desk
        try:
            folder = desk.workspace.resolve("uploads", "data")
            found = sorted(folder.iterdir(), key=lambda path: path.lstat().st_mtime, reverse=True)
        except (UserError, OSError):
            found = []
        uploads = [
            desk.workspace.relative(path)
            for path in found
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.is_symlink()
        ]
        return [entry.name for entry in desk.outputs()[:MAX_PICKED]] + uploads[:MAX_PICKED]

    def picked(self, name: str) -> list[Any]:
        """Updates of (video, prompt) to an output that is to be refined."""
        entry = self._desk.output(name)
        if entry is None:
            return [gr.skip(), gr.skip()]
        prompt = entry.recipe.get("prompt")
        names = list(dict.fromkeys([*self._names(), name]))
        return [gr.update(choices=names, value=name), prompt if isinstance(prompt, str) else gr.skip()]

    def refresh(self, seen: Seen, model: str | None, chosen: str | None) -> list[Any]:
        """What `live` shows now."""
        desk = self._desk
        names = self._names()
        if chosen and chosen not in names:
            names = [*names, chosen]
        job = desk.latest("refine", "noise")
        return [
            desk.when_changed(seen, "refine.models", model_choices(desk), lambda: model_update(desk, model)),
            desk.when_changed(seen, "refine.videos", names, lambda: gr.update(choices=names)),
            desk.when_changed(
                seen, "refine.stage", signature(job), lambda: stage(desk, job, "What you refine appears here.")
            ),
        ]
