"""The tab Generate: a prompt and settings -> a job; the newest result, and a gallery of the earlier ones."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gradio as gr

from reelwright.ui.controls import (
    FIRST_STEPS,
    MAX_SEED,
    SAMPLER_CHOICES,
    defaults_of,
    model_choices,
    model_update,
    number,
    stage,
)
from reelwright.ui.desk import Desk, Seen
from reelwright.ui.fragments import CLICKS, button, empty, escape, notice, signature, video_card
from reelwright.ui.requests import MAX_PROMPT_CHARACTERS
from reelwright.ui.workspace import OutputEntry

GALLERY_PAGE = 12
HEAVY_BYTES = 2_000_000
FROM_MODEL = ("steps", "guidance", "sampler", "frames", "width", "height", "fps")
SLIDER_ENDS = {"steps": 200, "guidance": 20}
FIELDS = ("model", "prompt", "negative_prompt", "seed", "num_videos", *FROM_MODEL)


class GeneratePage:
    """Built inside a tab. `live` is what `refresh` renews at every tick; `form` holds the settings by name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300, elem_classes="rw-panel rw-form"):
                self.form: dict[str, Any] = self._build_form()
                self.go = gr.Button("Generate", variant="primary", elem_id="generate-go")
                self.said = gr.HTML(elem_id="generate-said")
            with gr.Column(scale=6, min_width=300, elem_classes="rw-panel"):
                self.stage = gr.HTML(elem_id="generate-stage", js_on_load=CLICKS)
        gr.HTML('<p class="rw-title">Earlier videos</p>')
        self.gallery = gr.HTML(elem_id="gallery", js_on_load=CLICKS)
        self.count = gr.State(GALLERY_PAGE)
        self.more = gr.Button("Show more", size="sm", visible=False)
        self.live = [self.form["model"], *(self.form[name] for name in FROM_MODEL), self.stage, self.gallery, self.more]
        self._connect()

    def _build_form(self) -> dict[str, Any]:
        form: dict[str, Any] = {}
        form["model"] = gr.Dropdown([], value=None, label="Model", elem_id="generate-model")
        form["prompt"] = gr.Textbox(
            label="Prompt", lines=3, max_length=MAX_PROMPT_CHARACTERS, placeholder="What the video shows",
            elem_id="generate-prompt",
        )  # fmt: skip
        form["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, max_length=MAX_PROMPT_CHARACTERS)
        form["steps"] = gr.Slider(1, SLIDER_ENDS["steps"], step=1, label="Steps")
        form["guidance"] = gr.Slider(0, SLIDER_ENDS["guidance"], step=0.1, label="Guidance")
        with gr.Row(elem_classes="rw-end"):
            form["num_videos"] = number("Videos", 1, minimum=1, maximum=16, elem_id="generate-number")
            form["seed"] = number("Seed", 0, minimum=0, maximum=MAX_SEED, elem_id="generate-seed")
            self.dice = gr.Button("New seed", size="sm", min_width=90)
        with gr.Accordion("Size and sampler", open=False):
            with gr.Row():
                form["width"] = number("Width", None, minimum=1, maximum=4096)
                form["height"] = number("Height", None, minimum=1, maximum=4096)
            with gr.Row():
                form["frames"] = number("Frames", None, minimum=1, maximum=1024)
                form["fps"] = number("Frames / s", None, whole=False, minimum=0.1, maximum=240)
            form["sampler"] = gr.Dropdown(SAMPLER_CHOICES, value=None, label="Sampler")
        return form

    def _connect(self) -> None:
        self.go.click(self._generate, [self.form[name] for name in FIELDS], self.said)
        self.form["model"].input(self._take_defaults, self.form["model"], [self.form[name] for name in FROM_MODEL])
        self.dice.click(lambda: random.randrange(2**31), None, self.form["seed"])
        self.more.click(lambda count: count + GALLERY_PAGE, self.count, self.count)

    def _generate(self, *values: Any) -> str:
        request = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
        if not request.get("model"):
            return notice("There is no model yet: train one first.", "bad")
        if not str(request.get("prompt", "")).strip():
            return notice("Say in the prompt what the video shows.", "bad")
        return self._desk.submitted("generate", request, "Queued. It goes on if you close this page.")

    def _take_defaults(self, model: str | None) -> list[Any]:
        known = defaults_of(self._desk, model)
        return [_typed(name, known.get(name)) for name in FROM_MODEL]

    def settings_of(self, name: str) -> list[Any]:
        """Updates of the form, in the order of FIELDS, to the settings that made this output."""
        entry = self._desk.output(name)
        recipe: Mapping[str, Any] = entry.recipe if entry else {}
        root = f"{self._desk.workspace.root}/"
        model = str(recipe.get("model", "")).removeprefix(root)
        known = {**recipe, "model": model if model in [m.name for m in self._desk.models()] else None, "num_videos": 1}
        return [_typed(field, known.get(field)) for field in FIELDS]

    def refresh(self, seen: Seen, model: str | None, count: int) -> list[Any]:
        """What `live` shows now."""
        desk = self._desk
        choices, outputs = model_choices(desk), desk.outputs()
        job = desk.latest("generate")
        names = [(entry.name, entry.modified) for entry in outputs[: count + 1]]
        nothing = "What you generate appears here. The first video takes longer: the model is loaded."
        picks = choices and model not in [name for _, name in choices]  # a first choice is made for the user
        return [
            desk.when_changed(seen, "generate.models", choices, lambda: model_update(desk, model)),
            *(self._take_defaults(choices[0][1]) if picks else [gr.skip() for _ in FROM_MODEL]),
            desk.when_changed(
                seen,
                "generate.stage",
                (signature(job), bool(choices)),
                lambda: (
                    stage(desk, job, nothing) if choices or job else empty("Nothing to generate with yet", FIRST_STEPS)
                ),
            ),
            desk.when_changed(seen, "gallery", (names, count), lambda: self._gallery(count)),
            desk.when_changed(
                seen, "gallery.more", len(outputs) > count, lambda: gr.update(visible=len(outputs) > count)
            ),
        ]

    def _gallery(self, count: int) -> str:
        cards = [_card(entry) for entry in self._desk.outputs()[:count]]
        if not cards:
            return f'<p class="rw-faint">{escape("None yet. Every video is kept in outputs/ with its recipe.")}</p>'
        return f'<div class="rw-grid">{"".join(cards)}</div>'


def _card(entry: OutputEntry) -> str:
    buttons = button("Use these settings", "reuse", name=entry.name) + button("Refine", "refine", name=entry.name)
    try:
        heavy = entry.path.lstat().st_size > HEAVY_BYTES
    except OSError:  # removed meanwhile
        return ""
    return video_card(entry.name, entry.recipe, entry.modified, buttons, heavy=heavy)


def _typed(field: str, value: Any) -> Any:
    """A recipe's value for a form field; a file's value of another kind is left out, whoever wrote it."""
    if field in ("prompt", "negative_prompt", "model"):
        return value[:MAX_PROMPT_CHARACTERS] if isinstance(value, str) else gr.skip()
    if field == "sampler":
        return value if value in SAMPLER_CHOICES else gr.skip()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_SEED
    if not is_number:
        return gr.skip()
    if field in SLIDER_ENDS:  # a slider takes nothing past its end
        return gr.update(value=value, maximum=max(value, SLIDER_ENDS[field]))
    return value
