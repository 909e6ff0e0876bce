"""The page in a real browser, against a real server, a tiny trained model and a tiny training run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reelwright.config import to_yaml
from reelwright.recipe import Recipe

pytest.importorskip("gradio", reason="the extra `ui` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
WAIT_MS, WAIT_SECONDS = 60_000, 60.0
NASTY = "<script>alert(1)</script> {{7*7}} ${7*7} <img src=x onerror=alert(2)> \"' @children &lt;b&gt;"


@dataclass
class Site:
    """The running server, and what the browser did that it should not have."""

    url: str
    root: Path
    outside: list[str] = field(default_factory=list)  # requests to other addresses
    refused: list[str] = field(default_factory=list)  # answers of 400 and more
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # of the page's scripts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, trained_run: Path, shapes_clips: Path) -> Path:
    """runs/first (8 steps of training), data, and recipe.yaml, which trains runs/new for hours."""
    root = tmp_path_factory.mktemp("page") / "root"
    shutil.copytree(trained_run, root / "runs" / "first")
    shutil.copytree(shapes_clips, root / "data")
    settings = ["run_dir=runs/new", "cache_dir=cache", "data.path=data", "train.steps=1000000", "train.save_every=50",
                "train.evaluate_every=0", "train.log_every=1", "train.learning_rate=1e-4"]  # fmt: skip
    recipe = Recipe.load(trained_run / "recipe.yaml", settings)
    (root / "recipe.yaml").write_text(to_yaml(recipe.plain()), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def site(root: Path) -> Iterator[Site]:
    command = [sys.executable, "-m", "reelwright", "ui", "--workspace", str(root), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        match = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert match, "the server did not start"
        yield Site(match[0], root)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 0
        assert children_of(root) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def children_of(root: Path) -> list[str]:
    """Command lines of processes that work in the workspace."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").readlink().is_relative_to(root):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    page = open_page(browser, site)
    yield page
    page.close()
    assert (site.outside, site.refused, site.dialogs, site.errors) == ([], [], [], [])


def open_page(browser: Any, site: Site, width: int = 1280) -> Any:
    """The page, loaded, with an eye on everything it asks for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(WAIT_MS)

    def asked(request: Any) -> None:
        if not request.url.startswith((site.url, "data:", "blob:")):
            site.outside.append(request.url)

    def answered(response: Any) -> None:
        if response.status >= 400:
            site.refused.append(f"{response.status} {response.url}")

    page.on("request", asked)
    page.on("response", answered)
    page.on("dialog", lambda dialog: (site.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: site.errors.append(str(error)))
    page.goto(site.url)
    shown(page.locator("#jobs .rw-faint, #jobs .rw-job").first)
    return page


def shown(locator: Any) -> None:
    expect(locator).to_be_visible(timeout=WAIT_MS)


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def generate(page: Any, prompt: str) -> Any:
    """Ask for a video and wait for it; its card in the middle of the tab."""
    page.locator("#generate-prompt textarea").fill(prompt)
    page.locator("#generate-go").click()
    stage = page.locator("#generate-stage .rw-stage.done", has=page.locator(".rw-prompt", has_text=prompt))
    card = stage.locator(".rw-card").first
    shown(card.locator("video"))
    return card


def plays(page: Any, selector: str) -> None:
    """The video behind the selector decodes in this browser."""
    page.wait_for_function(f"(document.querySelector({selector!r})?.readyState ?? 0) >= 2", timeout=WAIT_MS)


def test_a_video_from_a_prompt_that_is_shown_as_text(page, root: Path) -> None:
    card = generate(page, NASTY)
    plays(page, "#generate-stage video")
    assert card.locator(".rw-prompt").inner_text() == NASTY
    assert page.locator("#jobs .rw-job.done .rw-subject").first.inner_text() == NASTY
    gallery = page.locator("#gallery .rw-card").first
    expect(gallery.locator(".rw-prompt")).to_have_text(NASTY, timeout=WAIT_MS)
    gallery.locator("summary").click()
    assert "<script>alert(1)</script>" in gallery.locator("pre").inner_text()
    assert page.locator("#gallery script, #gallery img, #jobs script, #jobs img").count() == 0
    (made,) = (root / "outputs").glob("*.mp4")
    assert made.with_name(made.name + ".json").is_file()


def test_settings_are_used_again(page) -> None:
    page.locator("#generate-seed input").fill("41")
    generate(page, "a green square")
    page.locator("#generate-seed input").fill("7")
    page.locator("#generate-prompt textarea").fill("something else")
    card = page.locator("#gallery .rw-card", has_text="a green square").first
    card.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#generate-prompt textarea")).to_have_value("a green square", timeout=WAIT_MS)
    expect(page.locator("#generate-seed input")).to_have_value("41")


@pytest.mark.full
def test_a_made_video_is_refined(page, root: Path) -> None:
    generate(page, "a blue circle")
    page.locator("#generate-stage .rw-card").first.get_by_role("button", name="Refine").click()
    expect(page.locator("#refine-prompt textarea")).to_have_value("a blue circle", timeout=WAIT_MS)
    plays(page, "#refine-input video")
    page.locator("#refine-go").click()
    shown(page.locator("#refine-stage .rw-stage.done video"))
    plays(page, "#refine-stage video")
    page.locator("#noise-go").click()
    shown(page.locator("#refine-stage .rw-title", has_text="Add noise: done"))
    assert len(list((root / "outputs").glob("*.mp4"))) >= 3


def test_an_upload_is_checked_and_kept(page, root: Path, tmp_path: Path) -> None:
    open_tab(page, "Refine")
    clip = next((root / "data").rglob("*.mp4"))
    page.locator("input[type=file]").set_input_files(clip)
    shown(page.locator("#refine-said .rw-notice.good"))
    plays(page, "#refine-input video")
    (stored,) = (root / "uploads").iterdir()
    assert stored.read_bytes() == clip.read_bytes()
    false = tmp_path / "false.mp4"
    false.write_text("no video at all")
    page.locator("input[type=file]").set_input_files(false)
    shown(page.locator("#refine-said .rw-notice.bad"))
    assert list((root / "uploads").iterdir()) == [stored]
    incoming = root / ".reelwright" / "incoming"
    assert [path for path in incoming.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_data_is_inspected(page) -> None:
    open_tab(page, "Data")
    page.get_by_label("Frames", exact=False).first.fill("8")
    page.locator("#data-go").click()
    frame = page.frame_locator("iframe.rw-report")
    shown(frame.get_by_role("heading", name="Inspection"))
    shown(frame.get_by_text("24 clips would be trained on"))
    assert frame.locator("td img").count() == 24
    page.locator("#data-folder input").fill("../../etc")
    page.locator("#data-folder input").press("Enter")
    page.locator("#data-go").click()
    shown(page.locator("#data-said .rw-notice.bad", has_text="leads upwards"))


def curve_step(page: Any) -> int:
    return int(page.locator("#run-curve .rw-curve").get_attribute("data-step"))


def wait_for_step(page: Any, past: int) -> int:
    """Until the curve shows a later step than `past`; that step."""
    page.wait_for_function(
        f"Number(document.querySelector('#run-curve .rw-curve')?.dataset.step ?? 0) > {past}", timeout=WAIT_MS
    )
    return curve_step(page)


@pytest.mark.full
def test_training_outlives_the_page_and_is_stopped_and_resumed(browser, site: Site, page, root: Path) -> None:
    open_tab(page, "Train")
    expect(page.locator("#setting-run_dir :is(input, textarea)")).to_have_value("runs/new", timeout=WAIT_MS)
    page.locator("button.label-wrap", has_text="Training").click()
    page.locator("#setting-train-steps input").fill("-3")
    page.locator("#train-go").click()
    shown(page.locator("#train-said .rw-notice.bad", has_text="train.steps"))
    page.locator("#setting-train-steps input").fill("900000")
    page.get_by_role("tab", name="YAML").click()
    expect(page.locator("#train-yaml pre")).to_contain_text("steps: 900000", timeout=WAIT_MS)
    page.locator("#train-go").click()
    first = wait_for_step(page, 0)
    drawn = page.locator("#run-curve svg").inner_html()
    wait_for_step(page, first)
    assert page.locator("#run-curve svg").inner_html() != drawn
    page.close()

    again = open_page(browser, site)
    shown(again.locator("#jobs .rw-job.running", has_text="recipe.yaml"))
    open_tab(again, "Train")
    wait_for_step(again, wait_for_step(again, first))
    again.locator("#run-stop").click()
    shown(again.locator("#run-status .rw-run.stopped"))
    stopped_at = curve_step(again)
    again.locator("#sample-prompt :is(input, textarea)").fill("a red square")
    again.locator("#sample-go").click()
    plays(again, "#run-now video")
    again.locator("#run-resume").click()
    assert wait_for_step(again, stopped_at) > stopped_at
    again.locator("#jobs .rw-job.running").get_by_role("button", name="Stop").click()
    shown(again.locator("#run-status .rw-run.stopped"))
    again.locator("button.label-wrap", has_text="Evaluate").click()
    again.locator("#evaluate-metrics :is(input, textarea)").fill("heldout, dynamic")
    again.locator("#evaluate-prompts input").fill("2")
    again.locator("#evaluate-go").click()
    shown(again.locator("#run-scores td", has_text="held-out loss"))
    shown(again.locator("#run-scores .rw-facts", has_text="sampler euler").first)
    again.locator("#train-prepare").click()
    shown(again.locator("#jobs .rw-job.done", has_text="Prepare"))
    again.close()
    assert "900000" in (root / "runs" / "new" / "recipe.yaml").read_text()


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.full)])
def test_no_tab_is_wider_than_the_window(browser, site: Site, width: int) -> None:
    page = open_page(browser, site, width)
    for name in ("Generate", "Refine", "Data", "Train"):
        open_tab(page, name)
        shown(page.get_by_role("tabpanel").first)
        page.wait_for_function("document.readyState === 'complete'")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, name
    page.close()
