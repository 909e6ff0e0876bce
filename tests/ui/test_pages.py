"""What the tabs show and ask for, without a browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

gr = pytest.importorskip("gradio", reason="the extra `ui` is not installed")

from reelwright.recipe import Recipe  # noqa: E402
from reelwright.run import RunDirectory  # noqa: E402
from reelwright.ui import fragments  # noqa: E402
from reelwright.ui.data_page import DataPage  # noqa: E402
from reelwright.ui.desk import Desk  # noqa: E402
from reelwright.ui.generate_page import FIELDS, GeneratePage  # noqa: E402
from reelwright.ui.incoming import clear_incoming  # noqa: E402
from reelwright.ui.jobs import JobQueue  # noqa: E402
from reelwright.ui.jobs_panel import act  # noqa: E402
from reelwright.ui.media import inspection_page  # noqa: E402
from reelwright.ui.records import Job, JobProgress  # noqa: E402
from reelwright.ui.refine_page import RefinePage  # noqa: E402
from reelwright.ui.requests import REQUESTS  # noqa: E402
from reelwright.ui.run_view import MAX_POINTS, Curves, sample_names, scores, status  # noqa: E402
from reelwright.ui.train_form import RecipeForm  # noqa: E402
from reelwright.ui.train_page import TrainPage  # noqa: E402
from reelwright.ui.workspace import Workspace  # noqa: E402

BUTTONS = {
    "generate": "Generate", "refine": "Refine", "noise": "Only add noise", "inspect": "Inspect",
    "prepare": "Only prepare", "train": "Start training", "evaluate": "Evaluate",
}  # fmt: skip
NASTY = "<script>alert(1)</script> {{7*7}} ${7*7} \" ' & @children `x` \\ \0"


@pytest.fixture
def desk(full_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A workspace whose jobs only wait: nothing is run here."""
    monkeypatch.setattr(JobQueue, "_work", lambda self, lane: None)
    queue = JobQueue(full_workspace)
    yield Desk(full_workspace, queue)
    queue.close()


def job(**fields: Any) -> Job:
    values = {"id": "000001", "kind": "generate", "request": {"prompt": NASTY}, "state": "done", **fields}
    return Job(**values)


def is_skip(update: Any) -> bool:
    return isinstance(update, dict) and set(update) == {"__type__"}


def test_escaped_text_is_the_same_text_and_no_markup() -> None:
    escaped = fragments.escape(NASTY)
    assert html.unescape(escaped) == NASTY.replace("\0", "\ufffd")
    assert not re.search(r"[<>{}$`@\"'\\]", escaped)


@pytest.mark.parametrize("state", ["queued", "running", "done", "failed", "stopped", "interrupted"])
def test_every_text_of_a_job_is_escaped(state) -> None:
    nasty = job(id=NASTY, state=state, error=NASTY, notes=(NASTY,), progress=JobProgress(1, 2, NASTY), started=1.0)
    button = fragments.button(NASTY, NASTY, x=NASTY)
    pieces = [
        fragments.job_card(nasty),
        status(NASTY, nasty),
        fragments.notice(NASTY, "bad"),
        fragments.video_card(NASTY, {"prompt": NASTY, NASTY: NASTY, "seed": 1}, 0, button),
        fragments.empty(NASTY, [(NASTY, NASTY)]),
        fragments.video(NASTY),
        fragments.video(f"{NASTY}.gif"),
    ]
    for piece in pieces:
        assert "<script" not in piece and "{{" not in piece and "${" not in piece
        assert "alert(1)" in unquote(html.unescape(piece))


def test_addresses_of_videos_hold_nothing_but_the_name() -> None:
    assert fragments.media_address("outputs/a b?c#d%.mp4") == "/media/outputs/a%20b%3Fc%23d%25.mp4"


@pytest.mark.parametrize(
    ("state", "action"),
    [("queued", "stop"), ("running", "stop"), ("done", None), ("failed", "again"), ("interrupted", "again")],
)
def test_a_job_offers_what_can_be_done(state, action) -> None:
    found = re.findall(r'data-action="(\w+)"', fragments.job_card(job(state=state)))
    assert found == ([action] if action else [])


def test_stop_and_again(desk: Desk) -> None:
    first = desk.queue.submit("generate", {"model": "runs/first", "prompt": "x"})
    assert "Asked to stop" in act(desk, "stop", first.id) and desk.queue.get(first.id).state == "stopped"
    assert "Queued again" in act(desk, "again", first.id)
    second = desk.queue.list()[0]
    assert second.id != first.id and second.request == first.request
    assert act(desk, "again", second.id) == "" and act(desk, "other", first.id) == ""
    assert "there is none" in act(desk, "stop", "../1")


def test_what_did_not_change_is_left_alone(desk: Desk) -> None:
    with gr.Blocks():
        pages = [GeneratePage(desk), RefinePage(desk), TrainPage(desk)]
    seen: dict[str, Any] = {}

    def refreshed() -> list[Any]:
        return [
            *pages[0].refresh(seen, "runs/first", 12),
            *pages[1].refresh(seen, "runs/first", "clip.mp4"),
            *pages[2].refresh(seen, "recipe.yaml", "runs/first"),
        ]

    first = refreshed()
    assert len(first) == sum(len(page.live) for page in pages) and not all(is_skip(update) for update in first)
    assert all(is_skip(update) for update in refreshed())
    desk.queue.submit("generate", {"model": "runs/first", "prompt": "a red circle"})
    changed = [update for update in refreshed() if not is_skip(update)]
    assert changed and all("a red circle" in update for update in changed)


def test_an_empty_workspace_says_what_to_do_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobQueue, "_work", lambda self, lane: None)
    queue = JobQueue(Workspace(tmp_path))
    try:
        empty = Desk(queue.workspace, queue)
        with gr.Blocks():
            pages = [GeneratePage(empty), TrainPage(empty)]
        said = [str(update) for update in [*pages[0].refresh({}, None, 12), *pages[1].refresh({}, None, None)]]
        for command in ("reelwright demo", "reelwright shapes data/shapes", "reelwright init my-project"):
            assert any(command in text for text in said), command
        assert "train one first" in pages[0]._generate(*(None for _ in FIELDS))
    finally:
        queue.close()


def test_a_first_model_brings_its_settings(desk: Desk) -> None:
    with gr.Blocks():
        page = GeneratePage(desk)
    model, *settings = page.refresh({}, None, 12)[:8]
    assert model["value"] == "runs/first"
    values = [update["value"] if isinstance(update, dict) else update for update in settings]
    assert values == [3, 4.0, "euler", 8, 32, 32, 8.0]
    assert all(is_skip(update) for update in page.refresh({}, "runs/first", 12)[1:8])


def test_settings_of_a_video_come_back_whoever_wrote_its_recipe(desk: Desk) -> None:
    with gr.Blocks():
        page = GeneratePage(desk)
    root = desk.workspace.root
    (root / "outputs").mkdir()
    shutil.copy(root / "clip.mp4", root / "outputs" / "made.mp4")
    beside = root / "outputs" / "made.mp4.json"
    beside.write_text(json.dumps({"prompt": NASTY, "seed": 5, "steps": 400, "model": f"{root}/runs/first"}))
    got: dict[str, Any] = dict(zip(FIELDS, page.settings_of("outputs/made.mp4"), strict=True))
    assert got["prompt"] == NASTY and got["seed"] == 5 and got["model"] == "runs/first"
    assert got["steps"]["value"] == 400 == got["steps"]["maximum"] and got["num_videos"] == 1
    wrong = {"prompt": [1], "seed": "5", "steps": -1, "guidance": True, "sampler": "evil", "model": "/etc", "fps": None}
    beside.write_text(json.dumps(wrong))
    got = dict(zip(FIELDS, page.settings_of("outputs/made.mp4"), strict=True))
    assert all(is_skip(got[name]) for name in wrong)
    assert all(
        is_skip(update) for name, update in zip(FIELDS, page.settings_of("../x"), strict=True) if name != "num_videos"
    )


def test_the_form_reads_what_it_shows(desk: Desk) -> None:
    with gr.Blocks():
        form = RecipeForm(desk)
    said, *values = form.load("recipe.yaml")
    assert said == "" and len(values) == len(form.components)
    recipe, changes, problem = form.read("recipe.yaml", values)
    assert (changes, problem) == ({}, "") and recipe is not None and str(recipe.run_dir) == "runs/new"
    keys = [(field.key, field.when) for field in form._fields]
    values[keys.index(("train.steps", None))] = 77
    values[keys.index(("codec.type", None))] = "dct"
    recipe, changes, problem = form.read("recipe.yaml", values)
    assert problem == "" and recipe is not None and recipe.train.steps == 77 and recipe.codec.plain()["type"] == "dct"
    assert "steps: 77" in form.as_yaml("recipe.yaml", *values) and "train.steps" in form.as_yaml("recipe.yaml", *values)
    values[keys.index(("train.steps", None))] = -1
    recipe, _, problem = form.read("recipe.yaml", values)
    assert recipe is None and problem.startswith("train.steps: ")
    assert form.read(None, values)[2] == "Choose a recipe."
    assert "leads upwards" in form.load("../recipe.yaml")[0]


def test_a_curve_grows_with_its_figures(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    curves = Curves()
    metrics.write_text('{"step": 1, "evaluating": true}\n')
    assert "No loss" in curves.draw(metrics)
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5, "heldout_loss": 1.7}\n')
    first = curves.draw(metrics)
    assert 'data-step="2"' in first and 'data-points="2"' in first and curves.draw(metrics) is first
    with metrics.open("a") as file:
        file.writelines(f'{{"step": {n}, "loss": {1 / n}}}\n' for n in range(3, 5000))
    second = curves.draw(metrics)
    points = int(re.findall(r'data-points="(\d+)"', second)[0])
    assert 'data-step="4999"' in second and MAX_POINTS / 2 < points <= MAX_POINTS


def test_samples_are_the_newest_first(desk: Desk) -> None:
    folder = desk.workspace.root / "runs" / "first" / "samples"
    shutil.rmtree(folder)
    folder.mkdir()
    for step in (4, 20, 8):
        for index in (0, 1, 2):
            shutil.copy(desk.workspace.root / "clip.mp4", folder / f"step-{step:07d}-{index:02d}.mp4")
    (folder / ".step-0000099-00.mp4").write_bytes(b"")
    names = [Path(name).stem for name in sample_names(desk.workspace, "runs/first")]
    assert names[:4] == ["step-0000020-00", "step-0000020-01", "step-0000020-02", "step-0000008-00"] and len(names) == 8
    assert sample_names(desk.workspace, "../..") == [] == sample_names(desk.workspace, "runs/none")


def test_training_is_asked_for_with_the_changes_alone(desk: Desk) -> None:
    with gr.Blocks():
        page = TrainPage(desk)
    _, *values = page.form.load("recipe.yaml")
    said, run = page._start(None, "recipe.yaml", *values)
    assert "Queued" in said and run["value"] == "runs/new"
    assert desk.queue.list()[0].request == {"recipe": "recipe.yaml", "changes": {}, "fork": None}
    said, run = page._start("../outside", "recipe.yaml", *values)
    assert "fork" in said and "leads upwards" in said and is_skip(run) and len(desk.queue.list()) == 1
    shutil.copy(desk.workspace.root / "recipe.yaml", desk.workspace.root / "runs" / "first" / "recipe.yaml")
    assert "Queued" in page._resume("runs/first")
    assert desk.queue.list()[0].request["recipe"] == "runs/first/recipe.yaml"
    assert desk.queue.list()[0].outputs == ("runs/first",), "where it lies, not where its recipe was written for"
    assert "training already" in page._resume("runs/first") and "training already" in page._resume("runs/new")
    assert "waits to be trained already" in page._start(None, "recipe.yaml", *values)[0]
    assert "Asked to stop" in page._stop("runs/first")
    assert "Nothing trains" in page._stop("runs/first") and "Choose a run" in page._sample("runs/first", None)


def test_a_sample_is_of_the_newest_checkpoint_and_not_of_the_best(desk: Desk) -> None:
    with gr.Blocks():
        page = TrainPage(desk)
    assert "Queued" in page._sample("runs/first", "a red circle")
    assert desk.queue.list()[0].request["checkpoint"] == "newest"


def test_every_request_has_a_button(desk: Desk) -> None:
    with gr.Blocks() as blocks:
        pages = [GeneratePage(desk), RefinePage(desk), DataPage(desk), TrainPage(desk)]
    labels = {block.value for block in blocks.blocks.values() if isinstance(block, gr.Button)}
    assert len(pages) == 4 and set(REQUESTS) == set(BUTTONS) and set(BUTTONS.values()) <= labels


def test_preparing_and_evaluating_are_asked_for(desk: Desk) -> None:
    with gr.Blocks():
        page = TrainPage(desk)
    _, *values = page.form.load("recipe.yaml")
    assert "Queued" in page._prepare("recipe.yaml", *values) and desk.queue.list()[0].kind == "prepare"
    assert "Choose a recipe" in page._prepare(None, *values) and "Choose a run" in page._evaluate(None, "auto", 8)
    assert "rw-notice bad" in page._evaluate("runs/first", "auto", 8), "its recipe names data outside the workspace"
    settings = ["run_dir=runs/first", "cache_dir=cache", "data.path=data"]
    for path in (desk.workspace.root / "runs" / "first").rglob("recipe.yaml"):
        Recipe.load(path, settings).save(path)
    assert "Queued" in page._evaluate("runs/first", "heldout, speed", 8)
    asked = desk.queue.list()[0].request
    assert (asked["metrics"], asked["prompts"]) == ("heldout,speed", 8)
    assert "metrics" in page._evaluate("runs/first", "--json=x", 8) and "Queued" in page._evaluate(
        "runs/first", "", None
    )
    assert (desk.queue.list()[0].request["metrics"], desk.queue.list()[0].request["prompts"]) == ("auto", 256)


def test_scores_are_shown_with_their_conditions_and_escaped(desk: Desk) -> None:
    run = RunDirectory(desk.workspace.root / "runs" / "first")
    assert scores(None) == ""
    rows = [{"row": NASTY, "metric": "x", "value": 0.25, "low": None, "n": 3, "sampler": NASTY, "steps": 4}]
    run.write_scores(rows, {"steps_trained": 8})
    shown = scores(run.scores_path)
    assert "after 8 steps" in shown and "<td>0.25</td>" in shown and "steps 4" in shown
    assert "<script" not in shown and "{{" not in shown and "${" not in shown
    run.scores_path.write_text("{")
    assert "damaged" in scores(run.scores_path)


def test_a_refine_request_is_checked_before_it_waits(desk: Desk) -> None:
    with gr.Blocks():
        page = RefinePage(desk)
    good = ["runs/first", "clip.mp4", 0.3, 0, "a red circle", None, None, None, "", False]
    assert "Queued" in page._refine(*good) and desk.queue.list()[0].request["sampler"] is None
    for place, value, said in ((0, None, "no model"), (1, None, "Choose a video"), (1, "../x.mp4", "leads upwards"),
                               (4, " ", "Say in the prompt"), (2, 2.0, "strength")):  # fmt: skip
        assert said in page._refine(*good[:place], value, *good[place + 1 :])
    assert "Queued" in page._add_noise(*good[:4]) and len(desk.queue.list()) == 2


def test_an_upload_leaves_nothing_behind(desk: Desk, tmp_path: Path) -> None:
    with gr.Blocks():
        page = RefinePage(desk)
    incoming = desk.workspace.upload_folder
    arrived = incoming / "abc" / "clip.mp4"
    arrived.parent.mkdir()
    shutil.copy(desk.workspace.root / "clip.mp4", arrived)
    update, said = page._take_upload(str(arrived))
    assert "Stored as uploads/clip-" in said and update["value"] in update["choices"][0] and not arrived.exists()
    outside = tmp_path / "clip.mp4"
    shutil.copy(desk.workspace.root / "clip.mp4", outside)
    update, said = page._take_upload(str(outside))
    assert "did not arrive by the page" in said and is_skip(update) and outside.exists()
    (incoming / "old").write_bytes(b"x")
    os.utime(incoming / "old", (time.time() - 9999, time.time() - 9999))
    (incoming / "new").write_bytes(b"x")
    clear_incoming(incoming)
    assert not (incoming / "old").exists() and (incoming / "new").exists()
    clear_incoming(incoming, 0.0)
    assert list(incoming.iterdir()) == []


def test_only_an_inspections_own_report_is_found(desk: Desk) -> None:
    made = desk.queue.submit("inspect", {"data": "data"})
    other = desk.queue.submit("generate", {"model": "runs/first", "prompt": "x"})
    jobs = desk.workspace.private_folder("jobs")
    for each in (made, other):
        (jobs / each.id).mkdir(exist_ok=True)
        (jobs / each.id / "inspection.html").write_text("x")
    assert inspection_page(desk.workspace, desk.queue, made.id) == jobs / made.id / "inspection.html"
    assert inspection_page(desk.workspace, desk.queue, other.id) is None
    assert inspection_page(desk.workspace, desk.queue, f"../jobs/{made.id}") is None
