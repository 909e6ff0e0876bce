"""Where `prepare` works is chosen beside the recipe, never in it."""

from __future__ import annotations

import json

import pytest

from reelwright.prepare.engine import Engine, parse_engine
from reelwright.prepare.summary import paced
from reelwright.types import UsageError


def test_settings_and_options_mean_the_same():
    rest, engine = parse_engine(["data.fps=4", "engine=ray", "address=head:6379", "workers=3", "train.steps=2"])
    assert rest == ["data.fps=4", "train.steps=2"]
    assert engine == Engine("ray", "head:6379", 3) == parse_engine([], "ray", "head:6379", 3)[1]
    assert parse_engine(["data.fps=4"]) == (["data.fps=4"], Engine("local", None, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine=spark"], "engine = 'spark': use local or ray"),
        (["address=head:6379"], "it needs engine=ray"),
        (["workers=0"], "workers = 0: at least 1"),
        (["workers=many"], "workers = 'many': a whole number"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(UsageError, match=message):
        parse_engine(settings)


def test_the_engine_does_not_change_what_is_prepared(run_cli, write_recipe, tmp_path):
    recipe = write_recipe(cache=tmp_path / "cache")
    first = json.loads(run_cli("prepare", recipe, "workers=1", "--json").out)
    second = json.loads(run_cli("prepare", recipe, "--engine", "local", "--workers", 2, "--json").out)
    assert (first["encoded"], second["encoded"], second["texts_encoded"]) == (24, 0, 0)
    assert len(list((tmp_path / "cache" / "manifests").iterdir())) == 1


def test_progress_says_how_fast_and_how_long():
    now, said = [0.0], []
    progress = paced(lambda *what: said.append(what), clock=lambda: now[0])
    for seconds, done in ((0, 16), (8, 32), (16, 48)):
        now[0] = float(seconds)
        progress("encoding", done, 10_000)
    now[0] = 20.0
    progress("captions", 64, 128)
    now[0] = 21.0
    progress("captions", 128, 128)
    assert said == [
        ("encoding", 16, 10_000, ""),
        ("encoding", 32, 10_000, "2/s, 1:23:04 left"),
        ("encoding", 48, 10_000, "2/s, 1:22:56 left"),
        ("captions", 64, 128, ""),
        ("captions", 128, 128, "64/s, 0:00 left"),
    ]
