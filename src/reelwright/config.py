"""The base of every setting: strict, frozen, and able to say what was meant.

defaults <- YAML file <- `a.b=c` on the command line. An unknown key or a wrong value is a `UsageError` that names the
file, the dotted field, the value, the rule and the nearest known names.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from reelwright.types import UsageError

MAX_YAML_BYTES = 1_000_000


class Config(BaseModel):
    """A group of settings. Beside its class it has a `build(...)` that makes the configured object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str = "settings") -> Self:
        """Validate plain values. UsageError lists every mistake, each with its field, value, rule and way out."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(cls, item) for item in error.errors()]
            raise UsageError(f"{origin}: " + "\n  ".join(lines)) from None

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file, apply `a.b=c` overrides, validate."""
        values = read_yaml(path)
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, origin=str(path))

    def plain(self) -> dict[str, Any]:
        """The settings as JSON and YAML know them."""
        return self.model_dump(mode="json")

    def save(self, path: Path) -> None:
        path.write_text(to_yaml(self.plain()), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings `_Loader` would read as numbers."""


def to_yaml(values: Mapping[str, Any]) -> str:
    """Text from which `parse_yaml` reads the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (an alias bomb grows without bound), duplicate keys or 1e-3 read as a string."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, "YAML aliases (*name) are not allowed in a recipe", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds; UsageError where it is missing, too large, not text or not a mapping."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UsageError(f"{path}: larger than {MAX_YAML_BYTES} bytes; a recipe is a short YAML file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give the path of a recipe (see recipes/)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a UTF-8 text file ({error})") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: holds a {type(values).__name__}, a recipe is a mapping of 'key: value' lines")
    return values


def parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader subclass)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{origin}: nested too deeply") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in nested plain values, c read as YAML. Changes `values` in place."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"'{override}': an override has the form key=value, for example train.steps=500")
    target = values
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if inner is None:
            inner = target[key] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"'{override}': {key} = {inner!r} is a value, not a group; it has no '{keys[-1]}'")
        target = inner
    target[keys[-1]] = parse_yaml(text, f"'{override}'")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {'a.b': value}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that look like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def _explain(cls: type[BaseModel], item: Any) -> str:
    """One validation mistake as a sentence."""
    location = [str(part) for part in item["loc"]]
    owner, path = _walk(cls, location)
    value = item.get("input")
    shown = repr(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    if item["type"] == "extra_forbidden":
        known = sorted(owner.model_fields) if owner else []
        similar = nearest(location[-1], known)
        group = ".".join(path[:-1]) or "the top level"
        hint = (
            f"did you mean {' or '.join(repr(s) for s in similar)}?" if similar else f"known keys: {', '.join(known)}"
        )
        return f"unknown key '{'.'.join(path)}' in {group}; {hint}"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        expected = str(item["ctx"].get("expected_tags", "")).replace("'", "")
        tag = item["ctx"].get("tag")
        given = f"'{tag}' is not one of them" if tag is not None else "no type is given"
        similar = nearest(str(tag), [name.strip() for name in expected.split(",")]) if tag else []
        hint = f"; did you mean '{similar[0]}'?" if similar else ""
        return f"{'.'.join(path)}.type: {given}; known types: {expected}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{'.'.join(path)}: required, but not given"
    if len(shown) > 120:
        shown = shown[:117] + "..."
    if item["type"] == "value_error":  # our own validators say the value themselves
        return f"{'.'.join(path)}: {message}" if path else message
    return f"{'.'.join(path)} = {shown}: {message[0].lower() + message[1:]}"


def _walk(cls: type[BaseModel], location: list[str]) -> tuple[type[BaseModel] | None, list[str]]:
    """Follow a pydantic error location to the config that owns its last part; drops union tags from the path."""
    owner: type[BaseModel] | None = cls
    path: list[str] = []
    candidates: list[type[BaseModel]] = []
    for part in location:
        tagged = [c for c in candidates if _tag(c) == part]
        if tagged:
            owner, candidates = tagged[0], []
            continue
        if candidates:
            owner, candidates = candidates[0], []
        path.append(part)
        field = owner.model_fields.get(part) if owner else None
        if field is not None:
            candidates = _models(field.annotation)
    return owner, path


def _tag(cls: type[BaseModel]) -> str | None:
    field = cls.model_fields.get("type")
    return str(field.default) if field is not None else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Union or get_args(annotation):
        return [model for inner in get_args(annotation) for model in _models(inner)]
    return []
