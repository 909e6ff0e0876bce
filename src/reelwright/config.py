"""The base of every setting: strict, frozen, and able to say what was meant.

defaults <- YAML file <- `a.b=c` on the command line. An unknown key or a wrong value is a `UsageError` that names the
file, the dotted field, the value, the rule and the nearest known names.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from reelwright.types import UsageError

MAX_YAML_BYTES = 1_000_000


class Config(BaseModel):
    """A group of settings. Beside its class it has a `build(...)` that makes the configured object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """Pydantic would take true for 1."""
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            value = values.get(name)
            if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name} = {str(value).lower()}: it is not a setting that is true or false")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str = "settings", overrides: Iterable[str] = ()) -> Self:
        """Validate plain values. UsageError lists every mistake, each with its field, value, rule and way out.

        Those of the `overrides`, which `values` have already, are named that a mistake may come from.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(cls, item) for item in error.errors()]
            places = [".".join(_walk(cls, item["loc"])[1]) for item in error.errors()]
            given = [text.strip() for text in overrides if any(_concerns(text, place) for place in places)]
            origin += f" with {' '.join(given)}" if given else ""
            raise UsageError(f"{origin}: " + "\n  ".join(lines)) from None

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file, apply `a.b=c` overrides, validate."""
        values, overrides = read_yaml(path), list(overrides)
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, str(path), overrides)

    def plain(self) -> dict[str, Any]:
        """The settings as JSON and YAML know them."""
        return self.model_dump(mode="json")

    def save(self, path: Path) -> None:
        path.write_text(to_yaml(self.plain()), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings `_Loader` would read as numbers, and escapes Unicode's line breaks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None  # any other style reads them as a line's end
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


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
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a key", key_node.start_mark)
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
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise UsageError(f"{path}: larger than {MAX_YAML_BYTES} bytes; a recipe is a short YAML file")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give the path of a recipe (see recipes/)") from None
    except IsADirectoryError:
        raise UsageError(
            f"{path}: a folder, but a recipe (YAML) is wanted; `reelwright init DIR` makes one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a UTF-8 text file ({error})") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: holds a {type(values).__name__}, a recipe is a mapping of 'key: value' lines")
    return values


def parse_yaml(text: str, origin: str) -> Any:
    """The value a YAML text stands for. UsageError names `origin` and what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader subclass)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{origin}: nested too deeply") from None
    except (ValueError, KeyError, AttributeError) as error:  # PyYAML: 2024-13-01, !!int x, !!bool x, !!timestamp x
        raise UsageError(f"{origin}: a value that does not fit its YAML type ({error}); put it in quotes") from None


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


def _concerns(override: str, place: str) -> bool:
    """Whether `a.b=c` sets the field at the dotted `place`, a part of it or what it is part of; "" is everything."""
    name = override.partition("=")[0].strip()
    return not place or f"{name}.".startswith(f"{place}.") or f"{place}.".startswith(f"{name}.")


def _explain(cls: type[BaseModel], item: Any) -> str:
    """One validation mistake as a sentence."""
    owner, path = _walk(cls, item["loc"])
    value = item.get("input")
    shown = repr(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    if item["type"] == "extra_forbidden":
        known = sorted(owner.model_fields) if owner else []
        similar = nearest(path[-1], known)
        group = ".".join(path[:-1]) or "the top level"
        hint = (
            f"did you mean {' or '.join(repr(s) for s in similar)}?" if similar else f"known keys: {', '.join(known)}"
        )
        return f"unknown key '{'.'.join(path)}' in {group}; {hint}"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        name = next(part for part in reversed(path) if not part.isdigit())  # of a list of such groups: the list's
        known = [str(_tag(c)) for c in _models(owner.model_fields[name].annotation)] if owner else []
        tag = item["ctx"].get("tag")
        given = f"'{tag}' is not one of them" if tag is not None else "no type is given"
        similar = nearest(str(tag), known) if tag else []
        hint = f"; did you mean '{similar[0]}'?" if similar else ""
        return f"{'.'.join(path)}.type: {given}; known types: {', '.join(known)}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{'.'.join(path)}: required, but not given"
    if len(shown) > 120:
        shown = shown[:117] + "..."
    if item["type"] == "value_error":  # our own validators say the value themselves
        return f"{'.'.join(path)}: {message}" if path else message
    return f"{'.'.join(path)} = {shown}: {message[0].lower() + message[1:]}"


def _walk(cls: type[BaseModel], location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """Follow a pydantic error location to the config that owns its last part.

    The path is without what pydantic adds: the tag of a union's member, and below a plain field ('micro_batch', 'int')
    the kind of value it tried.
    """
    owner: type[BaseModel] | None = cls
    path: list[str] = []
    candidates: list[type[BaseModel]] = []
    plain_field = False
    for part in location:
        if isinstance(part, int) or plain_field:
            path += [str(part)] if isinstance(part, int) else []
            continue
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
            plain_field = not candidates
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
