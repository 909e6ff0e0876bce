"""A recipe's schema as a flat list of form fields, and what was typed into them as changes of a recipe.

Everything comes from the configuration classes: names, types, bounds and choices from their annotations, the help from
the comment behind each setting.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import tokenize
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from reelwright.config import Config, parse_yaml
from reelwright.diffusion.losses import LOSSES
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.recipe import DEFAULT_TYPES, Recipe
from reelwright.types import UsageError

FieldType = Literal["int", "float", "bool", "choice", "text", "path", "list"]

GENERAL = "general"
CHOICES_BY_KEY = {
    "sampling.sampler": tuple(SAMPLERS),  # checked by a validator, so the annotation does not tell
    "objective.loss": tuple(LOSSES),
}
_SIMPLE: dict[Any, FieldType] = {bool: "bool", int: "int", float: "float", str: "text", Path: "path"}


@dataclass(frozen=True)
class FormField:
    """One setting. A `list` field (a list, or one of several kinds of value) is typed as YAML text."""

    key: str  # dotted: train.learning_rate
    label: str
    type: FieldType
    default: Any
    group: str  # "general", or the key's first part
    choices: tuple[str, ...] = ()
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False  # empty means null
    required: bool = False
    when: tuple[str, str] | None = None  # ("codec.type", "pca"): only where that choice is made


@functools.cache
def form_fields() -> tuple[FormField, ...]:
    """Every setting of a recipe; a union is the choice of its type and the fields of each type, with `when`."""
    return tuple(_fields_of(Recipe, "", None))


def form_values(recipe: Recipe) -> dict[str, Any]:
    """{key: value} for the fields that hold for this recipe; `list` fields as YAML text, None for null."""
    plain = recipe.plain()
    values: dict[str, Any] = {}
    for field in form_fields():
        if field.when is None or _at(plain, field.when[0]) == field.when[1]:
            value = _at(plain, field.key)
            values[field.key] = json.dumps(value, ensure_ascii=False) if field.type == "list" else value
    return values


def read_form(base: Recipe, shown: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(changes, errors) of what stands in a form that began as `form_values(base)`.

    changes: {key: plain value} of what is not as in `base`, for `apply_changes`. errors: {key: message}; the key is ""
    where a mistake belongs to no one field. Values of fields that do not hold for the chosen types are passed over.
    """
    plain = base.plain()
    changes: dict[str, Any] = {}
    errors: dict[str, str] = {}
    known = {field.key for field in form_fields()}
    for key in shown:
        if key not in known:
            errors[key] = f"{ascii(key)}: no such setting"
    for field in form_fields():
        if field.key not in shown or not _holds(field, plain, shown):
            continue
        try:
            value = _typed(field, shown[field.key])
        except UsageError as error:
            errors[field.key] = str(error)
            continue
        if not _same(_was(field, plain), value):
            changes[field.key] = value
    if not errors:
        try:
            Recipe.model_validate(_changed(plain, changes))
        except ValidationError as error:
            for item in error.errors():
                key, message = _field_of(item)
                errors.setdefault(key, message)
    return changes, errors


def apply_changes(base: Mapping[str, Any], changes: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """The recipe with {dotted key: value} put in. A changed `x.type` starts the group x anew.

    UsageError lists every mistake, as `Recipe.load` does.
    """
    return Recipe.parse(_changed(base, changes), origin)


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    values = json.loads(json.dumps(dict(base), default=str))  # plain values, none shared with `base`
    for key in sorted(changes, key=lambda key: not key.endswith(".type")):
        *groups, name = key.split(".")
        target = values
        for group in groups:
            inner = target.get(group)
            if inner is None:
                inner = target[group] = {}
            if not isinstance(inner, dict):
                raise UsageError(f"{ascii(key)}: {ascii(group)} is a value, not a group")
            target = inner
        if name == "type" and groups and target.get("type", DEFAULT_TYPES.get(groups[-1])) != changes[key]:
            target.clear()
        target[name] = changes[key]
    return values


def _holds(field: FormField, plain: Mapping[str, Any], shown: Mapping[str, Any]) -> bool:
    return field.when is None or shown.get(field.when[0], _at(plain, field.when[0])) == field.when[1]


def _typed(field: FormField, shown: Any) -> Any:
    """What was typed as the setting's plain value. UsageError for text that is no such value."""
    if shown is None or (isinstance(shown, str) and not shown.strip() and field.type != "text"):
        if field.optional or field.type == "list":
            return None
        raise UsageError("must be given")
    if field.type in ("int", "float"):
        return _number(field, shown)
    if field.type == "list":
        return parse_yaml(shown, field.label) if isinstance(shown, str) else shown
    if field.type == "text" and shown == "" and field.optional:
        return None
    if field.type in ("text", "path", "choice"):
        return str(shown)
    return shown


def _number(field: FormField, shown: Any) -> int | float:
    try:
        number = float(shown) if not isinstance(shown, bool) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != number or number in (float("inf"), float("-inf")):
        raise UsageError(f"{ascii(shown)} is not a number")
    if field.type == "int":
        if not number.is_integer():
            raise UsageError(f"{ascii(shown)} is not a whole number")
        return int(shown) if isinstance(shown, int | str) and str(shown).strip().lstrip("+-").isdigit() else int(number)
    return number


def _was(field: FormField, plain: Mapping[str, Any]) -> Any:
    """The setting's plain value before: the recipe's, or the default of a type that the recipe does not have."""
    if field.when is None or _at(plain, field.when[0]) == field.when[1]:
        return _at(plain, field.key)
    return parse_yaml(field.default, field.label) if field.type == "list" and field.default else field.default


def _same(one: Any, other: Any) -> bool:
    """Equal, where true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _field_of(item: Any) -> tuple[str, str]:
    """The dotted key a pydantic mistake is about, '' for none, and the message."""
    known = {field.key for field in form_fields()}
    tags = {field.when[1] for field in form_fields() if field.when}
    key = ""
    for part in item["loc"]:
        longer = f"{key}.{part}" if key else str(part)
        if key not in known and part in tags and longer not in known:
            continue
        if isinstance(part, int) or key in known:
            break
        key = longer
    if item["type"].startswith("union_tag"):
        key += ".type"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return (key, message) if key in known else ("", f"{key}: {message}" if key else message)


# The schema


def _fields_of(model: type[BaseModel], prefix: str, when: tuple[str, str] | None) -> Iterator[FormField]:
    comments = _comments(model)
    for name, info in model.model_fields.items():
        key = prefix + name
        members = _models(info.annotation)
        if not members:
            if not (when and name == "type"):  # the choice of a union's type stands before its members
                yield _field(key, info, comments.get(name, ""), when)
        elif len(members) == 1 and name not in DEFAULT_TYPES:
            yield from _fields_of(members[0], f"{key}.", when)
        else:
            types_ = tuple(_tag(member) for member in members)
            help_ = "; ".join(f"{_tag(member)}: {_summary(member)}" for member in members)
            default = _tag(type(info.default)) if isinstance(info.default, BaseModel) else types_[0]
            yield FormField(f"{key}.type", "type", "choice", default, key.split(".")[0], types_, help_)
            for member in members:
                yield from _fields_of(member, f"{key}.", (f"{key}.type", _tag(member)))


def _field(key: str, info: FieldInfo, comment: str, when: tuple[str, str] | None) -> FormField:
    kinds = _kinds(info.annotation)
    optional = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    choices = CHOICES_BY_KEY.get(key, ())
    kind: FieldType = "list"
    if choices or (kinds and all(isinstance(value, str) for value in kinds)):
        kind, choices = "choice", choices or tuple(kinds)
    elif len(kinds) == 1 and kinds[0] in _SIMPLE:
        kind = _SIMPLE[kinds[0]]
    required = info.is_required()
    default = None if required else info.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, Path):
        default = str(default)
    if kind == "list":
        default = None if required else json.dumps(default, ensure_ascii=False, default=str)
    minimum, maximum = _bounds(info)
    parts = key.split(".")
    group = parts[0] if len(parts) > 1 else GENERAL
    label = parts[-1].replace("_", " ")
    return FormField(key, label, kind, default, group, choices, comment, minimum, maximum, optional, required, when)


def _kinds(annotation: Any) -> list[Any]:
    """The classes and literal values a setting may be of; what has parts (lists, tuples) counts as itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for inner in get_args(annotation) for kind in _kinds(inner)]
    if origin is Literal:
        return list(get_args(annotation))
    return [annotation]


def _bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Smallest and largest value where the schema says; for an open bound (gt, lt) the bound itself."""
    low = high = None
    constraints = list(info.metadata)
    for inner in get_args(info.annotation):  # PositiveInt | None keeps its bounds inside
        if get_origin(inner) is Annotated:
            constraints += get_args(inner)[1:]
    for constraint in constraints:
        for part in getattr(constraint, "metadata", None) or [constraint]:
            low = getattr(part, "ge", getattr(part, "gt", low))
            high = getattr(part, "le", getattr(part, "lt", high))
    return low, high


def _models(annotation: Any) -> list[type[Config]]:
    """The groups of settings one of which stands here; none where it may be left out or is a list: typed as YAML."""
    if get_origin(annotation) in (list, tuple, dict) or type(None) in get_args(annotation):
        return []
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _tag(model: type[BaseModel]) -> str:
    field = model.model_fields.get("type")
    return str(field.default) if field is not None else ""


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").split("\n")[0].rstrip(".")


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """{setting: the comment behind it}, of the class and those it inherits from; {} where the source is not at hand."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in model.__mro__ if issubclass(c, BaseModel) and c not in (BaseModel, Config)]):
        try:
            source = inspect.cleandoc("\n" + inspect.getsource(cls))
        except (OSError, TypeError):
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        definition = ast.parse(source).body[0]
        for node in definition.body if isinstance(definition, ast.ClassDef) else ():
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found[node.target.id] = " ".join(by_line[line] for line in lines if line in by_line)
    return found
