"""A recipe as a form: one field a setting, all of them from the schema, and the recipe as YAML beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from reelwright.config import parse_yaml, to_yaml
from reelwright.recipe import Recipe
from reelwright.types import UserError
from reelwright.ui.admission import admit_recipe
from reelwright.ui.desk import Desk
from reelwright.ui.forms import GENERAL, FormField, apply_changes, form_fields, form_values, read_form
from reelwright.ui.fragments import escape, notice

_TITLES = {
    "general": "Run", "data": "Data", "codec": "Codec", "text": "Text encoder", "model": "Model",
    "objective": "Objective", "train": "Training", "sampling": "Sampling",
}  # fmt: skip


class RecipeForm:
    """Built inside a tab. `components` are in the order of `form_fields()`; `sections` belong to a type of a union."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._fields = form_fields()
        self.sections: dict[tuple[str, str], gr.Column] = {}
        by_field: dict[int, Any] = {}
        for group in dict.fromkeys(field.group for field in self._fields):
            with gr.Accordion(_TITLES.get(group, group), open=group == GENERAL):
                members = [(n, field) for n, field in enumerate(self._fields) if field.group == group]
                self._build_group(members, by_field)
        self.components = [by_field[number] for number in range(len(self._fields))]
        for number, field in enumerate(self._fields):
            sections = {tag: box for (key, tag), box in self.sections.items() if key == field.key}
            if field.when is None and sections:
                self._follow(by_field[number], sections)

    def _build_group(self, members: Sequence[tuple[int, FormField]], by_field: dict[int, Any]) -> None:
        """Rows of fields; those that one type of a union has stand in a section of their own."""
        sections = list(dict.fromkeys(field.when for _, field in members))
        for when in sections:
            inner = [(number, field) for number, field in members if field.when == when]
            shown = when is None or self._default_of(when[0]) == when[1]
            with gr.Column(visible=shown, elem_classes="rw-fields") as box:
                for number, field in inner:
                    by_field[number] = _component(field)
            if when is not None:
                self.sections[when] = box

    def _default_of(self, key: str) -> Any:
        return next((field.default for field in self._fields if field.key == key and field.when is None), None)

    def _follow(self, choice: Any, sections: dict[str, gr.Column]) -> None:
        """Show the section of the type that is chosen."""
        tags = list(sections)
        choice.change(
            lambda chosen: [gr.update(visible=tag == chosen) for tag in tags], choice, list(sections.values()),
            show_progress="hidden",
        )  # fmt: skip

    def load(self, name: str | None) -> list[Any]:
        """(notice, values of all components) for a recipe of the workspace."""
        nothing = [gr.skip() for _ in self._fields]
        if not name:
            return ["", *nothing]
        try:
            recipe = admit_recipe(self._desk.workspace, name, {})
        except UserError as error:
            return [notice(str(error), "bad"), *nothing]
        known, plain = form_values(recipe), recipe.plain()
        values = []
        for field in self._fields:
            holds = field.when is None or plain.get(field.when[0].split(".")[0], {}).get("type") == field.when[1]
            value = known.get(field.key) if holds else field.default
            values.append(_unquoted(value) if field.type == "list" else value)
        return ["", *values]

    def read(self, name: str | None, values: Sequence[Any]) -> tuple[Recipe | None, dict[str, Any], str]:
        """(the recipe with what was typed, its changes, ''), or (None, {}, what is wrong, a line a field)."""
        if not name:
            return None, {}, "Choose a recipe."
        try:
            base = admit_recipe(self._desk.workspace, name, {})
            changes, errors = read_form(base, self._shown(values))
            if not errors:
                return apply_changes(base.plain(), changes, origin=name), changes, ""
        except UserError as error:
            return None, {}, str(error)
        return None, {}, "\n".join(f"{key}: {message}" if key else message for key, message in errors.items())

    def _shown(self, values: Sequence[Any]) -> dict[str, Any]:
        """{key: value} of the fields that hold for the chosen types."""
        pairs = list(zip(self._fields, values, strict=True))
        chosen = {field.key: value for field, value in pairs if field.when is None}
        return {
            field.key: value for field, value in pairs if field.when is None or chosen[field.when[0]] == field.when[1]
        }

    def as_yaml(self, name: str | None, *values: Any) -> str:
        """The whole recipe with what was typed, every default spelled out."""
        recipe, changes, problem = self.read(name, values)
        if recipe is None:
            return notice(problem, "bad")
        said = f"{len(changes)} settings differ from {name}: {', '.join(changes)}" if changes else f"As {name} says."
        return notice(said) + f'<pre class="rw-code">{escape(to_yaml(recipe.plain()))}</pre>'


def _component(field: FormField) -> Any:
    """The control for one setting; the recipe's own rules are checked when it is read."""
    label = f"{field.label}{'' if field.required or not field.optional else ' (may be empty)'}"
    options: dict[str, Any] = {"label": label, "info": field.help or None, "min_width": 150, "elem_id": _element(field)}
    if field.type == "bool":
        return gr.Checkbox(bool(field.default), **options)
    if field.type == "choice":
        choices = [*([("none", "")] if field.optional else []), *((choice, choice) for choice in field.choices)]
        return gr.Dropdown(choices, value=field.default or ("" if field.optional else None), **options)
    if field.type in ("int", "float"):
        whole = field.type == "int"
        return gr.Number(field.default, precision=0 if whole else None, **options)
    value = "" if field.default is None else _unquoted(str(field.default))
    return gr.Textbox(value, max_lines=4 if field.type == "list" else 1, **options)


def _unquoted(text: Any) -> Any:
    """YAML text of a plain word without its quotation marks: auto, not "auto"."""
    bare = text[1:-1] if isinstance(text, str) and text[:1] == text[-1:] == '"' else text
    return bare if isinstance(bare, str) and bare.isalpha() and parse_yaml(bare, "") == bare else text


def _element(field: FormField) -> str:
    """The component's id in the page: setting-train-steps, setting-codec-block-dct."""
    return "-".join(["setting", *field.key.split("."), *([field.when[1]] if field.when else [])])
