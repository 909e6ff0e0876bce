"""reelwright.config: strict settings, safe YAML, overrides."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from reelwright.config import MAX_YAML_BYTES, Config, apply_override, flatten, parse_yaml, read_yaml, to_yaml
from reelwright.types import UsageError


class Wheel(Config):
    type: Literal["wheel"] = "wheel"
    radius: float = Field(default=1.0, gt=0)
    spokes: int | Literal["auto"] = "auto"


class Track(Config):
    type: Literal["track"] = "track"
    length: int = 3
    links: tuple[int, int] = (1, 2)


class Engine(Config):
    power: float = 10.0
    fuel: Literal["petrol", "diesel"] = "petrol"
    turbo: bool = False

    @model_validator(mode="after")
    def _check(self) -> Engine:
        if self.turbo and self.fuel == "petrol":
            raise ValueError("turbo = true needs fuel = diesel")
        return self


class Car(Config):
    name: str
    engine: Engine = Engine()
    drive: Annotated[Wheel | Track, Field(discriminator="type")] = Wheel()
    spare: Wheel | None = None
    doors: int | None = None


def mistake(values: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as refusal:
        Car.parse({"name": "x", **values}, origin="car.yaml")
    assert refusal.value.exit_code == 2
    message = str(refusal.value)
    assert message.startswith("car.yaml: ") and "pydantic" not in message and "union" not in message
    return message.removeprefix("car.yaml: ")


@pytest.mark.parametrize(
    ("values", "path", "group", "hint"),
    [
        ({"engin": {}}, "engin", "the top level", "did you mean 'engine'"),
        ({"engine": {"pwer": 3}}, "engine.pwer", "engine", "did you mean 'power'"),
        ({"engine": {"zzz": 3}}, "engine.zzz", "engine", "known keys: fuel, power, turbo"),
        ({"drive": {"type": "track", "lenght": 3}}, "drive.lenght", "drive", "did you mean 'length'"),
        ({"drive": {"type": "wheel", "length": 3}}, "drive.length", "drive", "known keys: radius, spokes, type"),
        ({"spare": {"radios": 3}}, "spare.radios", "spare", "did you mean 'radius'"),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(values: dict[str, Any], path: str, group: str, hint: str) -> None:
    message = mistake(values)
    assert f"unknown key '{path}' in {group}; {hint}" in message


def test_a_wrong_type_tag_lists_the_known_and_the_nearest() -> None:
    assert mistake({"drive": {"type": "trak"}}) == (
        "drive.type: 'trak' is not one of them; known types: wheel, track; did you mean 'track'?"
    )
    assert mistake({"drive": {"type": "7#!"}}).endswith("known types: wheel, track")
    assert mistake({"drive": {"length": 5}}) == "drive.type: no type is given; known types: wheel, track"


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"engine": {"power": "much"}}, "engine.power = 'much': "),
        ({"engine": {"fuel": "water"}}, "engine.fuel = 'water': "),
        ({"engine": 5}, "engine = 5: "),
        ({"drive": 5}, "drive = 5: "),
        ({"drive": {"type": "wheel", "radius": -1}}, "drive.radius = -1: "),
        ({"drive": {"type": "wheel", "spokes": "x"}}, "drive.spokes = 'x': "),
        ({"drive": {"type": "track", "links": [1, "x"]}}, "drive.links.1 = 'x': "),
        ({"drive": {"type": "track", "links": [1]}}, "drive.links.1: required"),
        ({"doors": 2.5}, "doors = 2.5: "),
        ({"doors": True}, "doors = true: "),
        ({"engine": {"power": False}}, "engine: power = false: "),
        ({"name": "y" * 5000, "doors": "z" * 5000}, "doors = 'zzz"),
        ({"engine": {"turbo": True}}, "engine: turbo = true needs fuel = diesel"),
        ({"name": None}, "name = None: "),
    ],
)
def test_a_wrong_value_is_named_by_its_dotted_field(values: dict[str, Any], start: str) -> None:
    message = mistake(values)
    assert message.startswith(start) or f"\n  {start}" in message
    assert len(message) < 500


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UsageError, match="name: required"):
        Car.parse({})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, ".nan", "nan", "inf"])
def test_no_number_is_infinite_or_undefined(value: Any) -> None:
    assert mistake({"engine": {"power": value}}).startswith("engine.power = ")


def test_every_mistake_is_listed() -> None:
    message = mistake({"engine": {"power": "x", "full": 1}, "doors": "y"})
    assert len(message.splitlines()) == 3
    assert all(name in message for name in ("engine.power", "engine.full", "doors"))


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        Car(name="x").name = "y"  # pyright: ignore[reportAttributeAccessIssue]


# Overrides


def test_overrides_read_their_value_as_yaml() -> None:
    values: dict[str, Any] = {"engine": {"power": 1}, "spare": None}
    for override in (
        "engine.power=1e-3", "doors=4", "name=a=b", "spare.radius=2.5", "drive.type=track", "drive.links=[3, 4]",
        "engine.turbo=false", "list=[a, {b: 1}]", "empty=", "nothing=null", "text='5'",
    ):  # fmt: skip
        apply_override(values, override)
    assert values == {
        "engine": {"power": 0.001, "turbo": False},
        "doors": 4,
        "name": "a=b",
        "spare": {"radius": 2.5},
        "drive": {"type": "track", "links": [3, 4]},
        "list": ["a", {"b": 1}],
        "empty": None,
        "nothing": None,
        "text": "5",
    }


@pytest.mark.parametrize("override", ["engine.power", "=5", ".a=5", "a.=5", "a..b=5", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match=r"key=value, for example"):
        apply_override({}, override)


@pytest.mark.parametrize("held", [5, "text", [1, 2], 0, False])
def test_an_override_into_a_value_is_refused(held: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"a = {held!r} is a value, not a group")):
        apply_override({"a": held}, "a.b=1")


def test_an_override_that_is_not_yaml_names_itself() -> None:
    with pytest.raises(UsageError, match=r"'a=\[1, 2'.*not valid YAML"):
        apply_override({}, "a=[1, 2")


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "car.yaml"
    path.write_text("name: x\nengine: {power: 3}\n")
    car = Car.load(path, ["engine.fuel=diesel", "engine.power=4"])
    assert car.engine == Engine(power=4, fuel="diesel") and car.drive == Wheel()
    with pytest.raises(UsageError, match=re.escape(str(path)) + ".*engine.fule"):
        Car.load(path, ["engine.fule=diesel"])


# YAML


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "the key 'a' appears twice"),
        ("x: {b: 1, b: 1}", "the key 'b' appears twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a:\n\t- b", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: !!python/name:os.system", "not valid YAML"),
        ("[1, 2]: 3", "as a key"),
        ("? {a: 1}\n: 2", "as a key"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: !!int x", "does not fit its YAML type"),
        ("a: !!bool x", "does not fit its YAML type"),
        ("a: !!timestamp x", "does not fit its YAML type"),
        ("a: " + "9" * 5000, "does not fit its YAML type"),
        ("[" * 3000, "nested too deeply"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_yaml_that_is_wrong_or_dangerous_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refusal:
        parse_yaml(text, "r.yaml")
    assert str(refusal.value).startswith("r.yaml: ")


def test_an_alias_bomb_costs_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    start = time.monotonic()
    with pytest.raises(UsageError, match="aliases"):
        parse_yaml("\n".join(lines), "bomb")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- a\n- b\n", "holds a list"),
        (b"just text", "holds a str"),
        (b"\xff\xfea: 1", "UTF-8"),
        (b"a: \xe9", "UTF-8"),
        (b"#" * (MAX_YAML_BYTES + 1), "larger than"),
        (b"\x00\x01\x02", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason) as refusal:
        read_yaml(path)
    assert str(path) in str(refusal.value)


def test_files_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffa: ü\r\n".encode())
    assert read_yaml(path) == {"a": "ü"}
    path.write_bytes(b"")
    assert read_yaml(path) == {}
    path.write_bytes(b"a: 1\n".ljust(MAX_YAML_BYTES, b"#"))
    assert read_yaml(path) == {"a": 1}
    with pytest.raises(UsageError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="a folder, but a recipe"):
        read_yaml(tmp_path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_what_is_saved_is_what_is_read(values: dict[str, Any]) -> None:
    assert parse_yaml(to_yaml(values), "text") == values


@pytest.mark.parametrize(
    "text", ["1e-3", "1.e5", "-.5E+2", "1e5", "no", "null", "~", "5", "0x1f", "1:30", "=", "<<", "2024-01-01", " x "]
)
def test_a_string_that_looks_like_something_else_stays_a_string(text: str) -> None:
    back = parse_yaml(to_yaml({"a": text}), "text")["a"]
    assert back == text and isinstance(back, str)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), ("+2e+1", 20.0), ("1.5e-3", 1.5e-3)])
def test_exponents_are_numbers_without_a_dot_too(text: str, value: float) -> None:
    assert parse_yaml(f"a: {text}", "text") == {"a": value}


def test_saved_settings_load_as_themselves(tmp_path: Path) -> None:
    car = Car(name="1e-3", engine=Engine(power=1e-7), drive=Track(links=(5, 6)), spare=Wheel(radius=1e22))
    car.save(tmp_path / "car.yaml")
    assert Car.load(tmp_path / "car.yaml") == car


def test_flatten_keeps_lists_whole() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": None}) == {
        "a.b.c": 1,
        "a.d": [1, {"e": 2}],
        "f": None,
    }
