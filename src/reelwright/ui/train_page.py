"""The tab Train: a recipe picked, edited, prepared and trained; a run watched, stopped, resumed, sampled, measured."""

from __future__ import annotations

from typing import Any

import gradio as gr

from reelwright.types import UserError
from reelwright.ui.controls import number, stage
from reelwright.ui.desk import Desk, Seen
from reelwright.ui.fragments import CLICKS, empty, notice, signature
from reelwright.ui.requests import MAX_EVALUATED, MAX_PROMPT_CHARACTERS, EvaluateRequest
from reelwright.ui.run_view import Curves, log_end, run_file, sample_names, samples, scores, status, training_job
from reelwright.ui.train_form import RecipeForm

_NO_RECIPE = [
    ("Make a project folder, with a recipe in it:", "reelwright init my-project"),
    ("Or render clips and train on them with a recipe of your own:", "reelwright shapes data/shapes --clips 3000"),
]


class TrainPage:
    """Built inside a tab. `live` is what `refresh` renews at every tick."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._curves = Curves()
        with gr.Column(elem_classes="rw-panel rw-form"):
            self._build_start()
        with gr.Column(elem_classes="rw-panel"):
            self._build_run()
        self.live = [self.recipe, self.hint, self.run, self.stop, self.resume, self.status, self.curve, self.samples,
                     self.now, self.scores, self.log]  # fmt: skip
        self._connect()

    def _build_start(self) -> None:
        self.hint = gr.HTML(elem_id="train-hint")
        self.recipe = gr.Dropdown([], value=None, label="Recipe", elem_id="train-recipe")
        self.problem = gr.HTML(elem_id="train-problem")
        with gr.Tabs():
            with gr.Tab("Form"):
                self.form = RecipeForm(self._desk)
            with gr.Tab("YAML") as self.yaml_tab:
                self.yaml = gr.HTML(elem_id="train-yaml")
        with gr.Accordion("Go on in a new run directory", open=False):
            self.fork = gr.Textbox(
                label="New run directory", placeholder="runs/second", elem_id="train-fork",
                info="for a run whose settings are to change: it stays as it is, and the new one goes on from it",
            )  # fmt: skip
        with gr.Row():
            self.start = gr.Button("Start training", variant="primary", elem_id="train-go")
            self.prepare = gr.Button("Only prepare", elem_id="train-prepare")
        self.said = gr.HTML(elem_id="train-said")

    def _build_run(self) -> None:
        self.run = gr.Dropdown([], value=None, label="Run", elem_id="run-name", allow_custom_value=True)
        self.status = gr.HTML(elem_id="run-status")
        with gr.Row():
            self.stop = gr.Button("Stop", size="sm", interactive=False, min_width=90, elem_id="run-stop")
            self.resume = gr.Button("Resume", size="sm", interactive=False, min_width=90, elem_id="run-resume")
        self.curve = gr.HTML(elem_id="run-curve")
        with gr.Row(elem_classes="rw-end"):
            self.prompt = gr.Textbox(
                label="Sample now",
                placeholder="A prompt for the newest checkpoint",
                scale=4,
                min_width=180,
                max_length=MAX_PROMPT_CHARACTERS,
                elem_id="sample-prompt",
            )
            self.sample = gr.Button("Sample", size="sm", scale=1, min_width=90, elem_id="sample-go")
        self.run_said = gr.HTML(elem_id="run-said")
        self.now = gr.HTML(elem_id="run-now", js_on_load=CLICKS)
        self.samples = gr.HTML(elem_id="run-samples", js_on_load=CLICKS)
        with gr.Accordion("Evaluate", open=False), gr.Row(elem_classes="rw-end"):
            self.metrics = gr.Textbox(
                "auto", label="Metrics", scale=3, min_width=180, elem_id="evaluate-metrics",
                info="auto: what fits the data; or some of shapes, memorisation, nearest, temporal, dynamic, heldout, "
                "speed, with commas between",
            )  # fmt: skip
            usual = EvaluateRequest.model_fields["prompts"].default
            self.prompts = number(
                "Videos", usual, minimum=2, maximum=MAX_EVALUATED, scale=1, elem_id="evaluate-prompts"
            )  # fmt: skip
            self.evaluate = gr.Button("Evaluate", size="sm", scale=1, min_width=90, elem_id="evaluate-go")
        self.scores = gr.HTML(elem_id="run-scores")
        self.log = gr.HTML(elem_id="run-log")

    def _connect(self) -> None:
        values = [self.recipe, *self.form.components]
        self.recipe.change(self.form.load, self.recipe, [self.problem, *self.form.components])
        self.yaml_tab.select(self.form.as_yaml, values, self.yaml)
        self.start.click(self._start, [self.fork, *values], [self.said, self.run])
        self.prepare.click(self._prepare, values, self.said)
        self.evaluate.click(self._evaluate, [self.run, self.metrics, self.prompts], self.run_said)
        self.stop.click(self._stop, self.run, self.run_said)
        self.resume.click(self._resume, self.run, self.run_said)
        self.sample.click(self._sample, [self.run, self.prompt], self.run_said)

    def _start(self, fork: str | None, name: str | None, *values: Any) -> tuple[str, Any]:
        recipe, changes, problem = self.form.read(name, values)
        if recipe is None:
            return notice(problem, "bad"), gr.skip()
        fork = (fork or "").strip()
        request = {"recipe": name, "changes": changes, **({"fork": fork} if fork else {})}
        _, problem = self._desk.submit("train", request)
        if problem:
            return notice(problem, "bad"), gr.skip()
        run = fork or str(recipe.run_dir).removeprefix(f"{self._desk.workspace.root}/")
        said = notice("Queued: the data is prepared first. It goes on if you close this page.", "good")
        return said, gr.update(choices=list(dict.fromkeys([run, *self._desk.runs()])), value=run)

    def _prepare(self, name: str | None, *values: Any) -> str:
        recipe, changes, problem = self.form.read(name, values)
        if recipe is None:
            return notice(problem, "bad")
        said = "Queued. What it says at its end stands in the list of jobs."
        return self._desk.submitted("prepare", {"recipe": name, "changes": changes}, said)

    def _stop(self, run: str | None) -> str:
        job = training_job(self._desk, run or "")
        if job is None or not job.active:
            return notice("Nothing trains in this run.")
        self._desk.queue.stop(job.id)
        return notice("Asked to stop. It saves before it ends.")

    def _resume(self, run: str | None) -> str:
        """By the request that began the run; by the run's own recipe, where it lies now, if it was begun elsewhere."""
        job = training_job(self._desk, run or "")
        if job is not None and job.active:
            return notice("It is training already.")
        request = job.request if job is not None else {"recipe": f"{run}/recipe.yaml", "changes": {"run_dir": run}}
        return self._desk.submitted("train", request, "Queued: it goes on from its newest checkpoint.")

    def _sample(self, run: str | None, prompt: str | None) -> str:
        if not run or not (prompt or "").strip():
            return notice("Choose a run, and say what the sample shows.", "bad")
        said = "Queued; it appears below, and in outputs/."
        return self._desk.submitted("generate", {"model": run, "prompt": prompt, "checkpoint": "newest"}, said)

    def _evaluate(self, run: str | None, metrics: str | None, prompts: float | None) -> str:
        if not run:
            return notice("Choose a run.", "bad")
        given = {"metrics": (metrics or "").replace(" ", ""), "prompts": prompts}
        request = {"model": run, **{name: value for name, value in given.items() if value}}
        return self._desk.submitted("evaluate", request, "Queued behind what trains; the scores appear below.")

    def refresh(self, seen: Seen, recipe: str | None, run: str | None) -> list[Any]:
        """What `live` shows now."""
        desk = self._desk
        recipes, runs = [entry.name for entry in desk.recipes()], desk.runs()
        shown = run or (runs[0] if runs else "")
        job = training_job(desk, shown) if shown else None
        now = desk.latest("generate", model=shown) if shown else None
        names = sample_names(desk.workspace, shown) if shown else []
        log = run_file(desk.workspace, shown, "training.log") if shown else None
        active = job is not None and job.active
        metrics = run_file(desk.workspace, shown, "metrics.jsonl") if shown else None
        measured = run_file(desk.workspace, shown, "scores.json") if shown else None
        nothing = empty("No recipe in this workspace yet", _NO_RECIPE) if not recipes else ""
        first = None if recipe in recipes or not recipes else recipes[0]
        return [
            desk.when_changed(
                seen,
                "train.recipes",
                recipes,
                lambda: gr.update(choices=recipes, value=first) if first else gr.update(choices=recipes),
            ),
            desk.when_changed(seen, "train.hint", nothing, lambda: nothing),
            desk.when_changed(seen, "train.runs", (runs, shown), lambda: self._runs(runs, run, shown)),
            desk.when_changed(seen, "run.stop", active, lambda: gr.update(interactive=active)),
            desk.when_changed(
                seen, "run.resume", (shown, active), lambda: gr.update(interactive=bool(shown) and not active)
            ),
            desk.when_changed(
                seen,
                "run.status",
                (shown, signature(job)),
                lambda: status(shown, job and desk.told(job)) if shown else "",
            ),
            desk.when_changed(seen, "run.curve", (shown, _grown(metrics)), lambda: self._curve(shown, metrics)),
            desk.when_changed(seen, "run.samples", names, lambda: samples(desk, names)),
            desk.when_changed(
                seen, "run.now", (shown, signature(now)), lambda: stage(desk, now, "", ()) if now else ""
            ),
            desk.when_changed(seen, "run.scores", (shown, _grown(measured)), lambda: scores(measured)),
            desk.when_changed(seen, "run.log", (shown, _grown(log)), lambda: log_end(log)),
        ]

    def _runs(self, runs: list[str], run: str | None, shown: str) -> Any:
        choices = list(dict.fromkeys([*runs, *([shown] if shown else [])]))
        return gr.update(choices=choices) if run else gr.update(choices=choices, value=shown or None)

    def _curve(self, run: str, metrics: Any) -> str:
        if metrics is None:
            return "" if not run else '<p class="rw-faint">No loss has been logged yet.</p>'
        try:
            return self._curves.draw(metrics)
        except (UserError, OSError, ValueError) as error:
            return notice(str(error), "bad")


def _grown(path: Any) -> tuple[int, int]:
    """Size and time of a file that grows; zeros where there is none."""
    try:
        facts = path.stat()
    except (AttributeError, OSError):
        return (0, 0)
    return (facts.st_size, facts.st_mtime_ns)
