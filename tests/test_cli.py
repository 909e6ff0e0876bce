"""The command line: exit codes, one message for a mistake, JSON that parses, help for everything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reelwright import __version__
from reelwright.console import Progress, print_table


def test_done_is_0_and_prints_only_its_result(run_cli, tmp_path):
    result = run_cli("shapes", tmp_path / "s", "--clips", 2, "--frames", 4, "--width", 32, "--height", 32)
    assert (result.code, result.err) == (0, "") and result.out.startswith("2 clips in ")
    assert len(json.loads((tmp_path / "s" / "captions.json").read_text())) == 2


def test_a_failure_is_1(run_cli, write_recipe, tmp_path, shapes_clips):
    data = shutil.copytree(shapes_clips, tmp_path / "data")
    for video in (data / "videos").iterdir():
        video.write_bytes(b"no video")
    result = run_cli("prepare", write_recipe(data=data, cache=tmp_path / "cache"))
    assert result.code == 1 and "no clip is left to train on" in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("prepair",), "prepair"),
        (("shapes", "out", "--clip", "3"), "--clip"),
        (("shapes", "out", "--clips", "many"), "Invalid value for '--clips'"),
        (("shapes", "out", "--clips", "0"), "greater than or equal to 1"),
        (("shapes",), "OUT"),
        (("shapes", "out", "--track", "s9"), "track = 's9' is not known; use one of s1"),
        (("train", "absent.yaml"), "absent.yaml: no such file"),
        (("inspect", "absent"), "neither a folder of captioned clips nor a recipe"),
        (("evaluate", "absent"), "'absent': not a model"),
    ],
)
def test_wrong_usage_is_2_in_one_message(run_cli, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    result = run_cli(*arguments)
    assert result.code == 2 and told in result.err and result.out == ""
    assert "Traceback" not in result.err and not list(tmp_path.iterdir())


def test_interrupted_is_130(run_cli, write_recipe, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reelwright.prepare.prepare", interrupt)
    result = run_cli("prepare", write_recipe())
    told = "reelwright: interrupted; what was encoded is kept; the same command goes on\n"
    assert (result.code, result.err) == (130, told)


def test_an_interrupted_run_is_130_and_says_where(run_cli, write_recipe, monkeypatch):
    from reelwright import train as train_verb

    monkeypatch.setattr(train_verb, "_first_signal", lambda *_: "SIGTERM")
    result = run_cli("train", write_recipe())
    last = result.err.strip().splitlines()[-1]
    assert (result.code, last) == (130, "stopped by SIGTERM at step 1, which is saved; the same command goes on")
    assert "interrupted" not in result.err, "said once"


def test_our_own_mistakes_show_where_with_debug_only(run_cli, write_recipe, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken inside")

    monkeypatch.setattr("reelwright.prepare.prepare", fail)
    recipe = write_recipe()
    result = run_cli("prepare", recipe)
    assert result.code == 1 and result.err.strip().count("\n") == 0
    assert "RuntimeError: broken inside" in result.err and "--debug" in result.err
    monkeypatch.setattr(sys, "argv", ["reelwright", "--debug", "prepare", str(recipe)])
    from reelwright.cli import main

    with pytest.raises(RuntimeError, match="broken inside"):
        main()


def test_debug_shows_the_traceback_of_a_users_mistake_too(monkeypatch, capsys):
    from reelwright.cli import main

    for place in (["--debug", "train", "absent.yaml"], ["train", "absent.yaml", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["reelwright", *place])
        with pytest.raises(SystemExit) as end:
            main()
        err = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" in err and "absent.yaml: no such file" in err


def test_version_and_bare_call(run_cli):
    assert run_cli("--version").out == f"reelwright {__version__}\n"
    bare = run_cli()
    assert bare.code in (0, 2) and "prepare" in bare.out + bare.err


def test_every_command_that_does_work_says_what_ctrl_c_leaves():
    from reelwright.cli.app import KEPT

    named = set(app_commands()) - {"init", "ui"}  # done at once; nothing of its own
    assert set(KEPT) == named


def app_commands() -> dict[str, Any]:
    """Every command and group by its name."""
    import typer.main

    from reelwright.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def all_commands() -> dict[tuple[str, ...], Any]:
    found = {}
    for name, command in app_commands().items():
        found[name,] = command
        found |= {(name, inner): value for inner, value in getattr(command, "commands", {}).items()}
    return found


@pytest.mark.parametrize("words", [(), *all_commands()], ids=" ".join)
def test_help_is_whole_at_80_columns(run_cli, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    result = run_cli(*words, "--help")
    assert result.code == 0 and result.err == ""
    assert all(len(line) <= 80 for line in result.out.splitlines())
    read = " ".join(result.out.split())
    if not words or words == ("experiment",):
        inner = app_commands() if not words else app_commands()["experiment"].commands
        told = [command.help.partition("\n\n")[0] for command in inner.values()]
    else:
        parameters = [one for one in all_commands()[words].params if one.name != "help"]
        told = [one.help for one in parameters]
        assert all(told), [one.name for one in parameters if not one.help]
    for text in told:
        assert " ".join(text.split()) in read, text


def test_json_output_parses(run_cli, write_recipe, shapes_clips):
    inspected = json.loads(run_cli("inspect", shapes_clips, "frames=8", "data.width=32", "height=32", "--json").out)
    assert inspected["counts"]["used"] == 24 and inspected["buckets"][0]["size"] == [8, 32, 32]
    prepared = json.loads(run_cli("prepare", write_recipe(), "--json").out)
    assert prepared["samples"] == {"train": 20, "validation": 4, "dropped": 0} and prepared["encoded"] in (0, 24)


def test_inspect_writes_nothing_but_its_page(run_cli, shapes_clips, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in shapes_clips.rglob("*")}
    result = run_cli("inspect", shapes_clips, "frames=8", "--html", tmp_path / "page.html")
    assert result.code == 0 and "24 clips (captions_json): 24 used, 0 dropped" in result.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png") >= 24 and "00000.mp4" in page
    assert {path: path.stat().st_mtime_ns for path in shapes_clips.rglob("*")} == before


def test_overrides_reach_the_recipe(run_cli, write_recipe):
    recipe = write_recipe()
    assert "train.step' in train; did you mean 'steps'" in run_cli("prepare", recipe, "train.step=3").err
    assert run_cli("prepare", recipe, "nonsense").code == 2
    assert "fitted on the data" in run_cli("prepare", recipe, "codec.channels=20").out


def test_a_new_project_can_be_inspected_once_it_has_clips(run_cli, tmp_path, monkeypatch, shapes_clips):
    monkeypatch.chdir(tmp_path)
    assert run_cli("init", "mine").code == 0
    again = run_cli("init", "mine")
    assert again.code == 2 and "exists" in again.err
    monkeypatch.chdir(tmp_path / "mine")
    shutil.copytree(shapes_clips / "videos", "data/videos", dirs_exist_ok=True)
    shutil.copy(shapes_clips / "captions.json", "data/captions.json")
    result = run_cli("inspect", "recipe.yaml", "data.frames=8")
    assert result.code == 0 and "24 used, 0 dropped" in result.out


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "reelwright", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, f"reelwright {__version__}\n")


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("reelwright.console.time.monotonic", lambda: now[0])
    with Progress() as progress:
        for done in range(1, 31):
            now[0] += 1.0
            progress("encoding", done, 30, "note")
        progress.say("a line that stays")
    assert capsys.readouterr().err.splitlines() == [
        "encoding 11/30 note", "encoding 21/30 note", "a line that stays"
    ]  # fmt: skip
    with Progress(quiet=True) as progress:
        now[0] += 100.0
        progress("encoding", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_tables_are_aligned(capsys):
    print_table(["row", "n"], [["model", 5], ["a longer name", 12]], "title")
    assert capsys.readouterr().out.splitlines() == [
        "title", "row            n", "-------------  --", "model          5", "a longer name  12"
    ]  # fmt: skip


def test_no_command_imports_torch_to_show_help():
    code = "import sys; from reelwright.cli import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0
