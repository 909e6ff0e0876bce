"""The card's scores: what a reader looks for, each with its interval and what it is read beside; the rest by name."""

from __future__ import annotations

from typing import Any

from reelwright.report.model_card import headline_rows, model_card

CONTROLS = ("model, shuffled captions", "renderer", "untrained model", "model, blank")


def row(metric: str, value: float, of: str = "model", split: str = "", n: int = 256, **more: Any) -> dict[str, Any]:
    return {"row": of, "split": split, "metric": metric, "value": value, "low": None, "high": None, "n": n, **more}


def shapes() -> list[dict[str, Any]]:
    """What `evaluate` writes of the moving shapes: 4 splits, controls on the first, every factor by itself."""
    rows = []
    metrics = ("joint accuracy", "still joint accuracy", "abstained", "valid", "shape accuracy", "binding deficit",
               "direction error (degrees)", "diversity of colour")  # fmt: skip
    for split in ("in_distribution", "held_out_pairs", "held_out_triples", "paraphrases"):
        rows += [row(metric, 0.5, split=split, low=0.4, high=0.6, steps=8) for metric in metrics]
    rows += [row(m, 0.1 * k, of, "in_distribution") for m in metrics for k, of in enumerate(CONTROLS, start=1)]
    return rows


def card(scores: list[dict[str, Any]], pipeline: dict[str, Any] | None = None) -> str:
    recipe = {
        "seed": 0, "data": {"frames": 8, "width": 32, "height": 32, "fps": 8.0},
        "sampling": {"sampler": "euler", "steps": 8, "guidance": 2.0},
    }  # fmt: skip
    origin = {
        "weights": "averaged", "versions": {}, "step": 8, "seconds": 60.0, "weights_sha256": "a", "data_sha256": ""
    }  # fmt: skip
    facts = {"name": "m", "recipe": recipe, "recipe_text": "", "parameters": 1, "parts": [], "origin": origin}
    return model_card({**facts, "data": None, "scores": scores, "index": "model_index.json", "pipeline": pipeline})


def test_a_line_a_metric_and_split_with_its_interval_and_what_it_is_read_beside() -> None:
    scores = [*shapes(), row("held-out loss", 0.81, split="validation", n=32, low=0.8, high=0.82)]
    lines = [line for line in card(scores).splitlines() if line.startswith(("| joint", "| held", "| shape"))]
    assert lines == [
        "| joint accuracy | in_distribution | 0.5 | [0.4, 0.6] | 256 "
        "| model, shuffled captions 0.1, renderer 0.2 | 1 |",
        "| joint accuracy | held_out_pairs | 0.5 | [0.4, 0.6] | 256 |  | 1 |",
        "| joint accuracy | held_out_triples | 0.5 | [0.4, 0.6] | 256 |  | 1 |",
        "| joint accuracy | paraphrases | 0.5 | [0.4, 0.6] | 256 |  | 1 |",
        "| held-out loss | validation | 0.81 | [0.8, 0.82] | 32 |  |  |",
    ]
    assert f"{len(scores) - 5} more rows" in card(scores) and "[model_index.json](model_index.json)" in card(scores)


def test_of_a_distance_the_one_of_most_videos_beside_as_many_real_ones() -> None:
    scores = []
    for n, value in ((64, 90.0), (32, 120.0), (16, 150.0)):
        scores.append(row("Frechet video distance (i3d)", value, n=n))
        if n < 64:
            scores.append(row("Frechet video distance (i3d)", value / 2, "real clips against real clips", n=n))
    (shown,) = headline_rows(scores)
    assert (shown["n"], shown["value"]) == (64, 90.0)
    assert "| Frechet video distance (i3d) |  | 90 |  | 64 |  |  |" in card(scores), "none of 64 to hold it against"


def test_the_loss_is_told_once_and_a_metric_of_ones_own_is_not_lost() -> None:
    while_training = row("loss at fixed noise, while training", 0.5, split="validation")
    mine, held_out = row("my own metric", 3.0), row("held-out loss", 0.5, split="validation")
    assert [r["metric"] for r in headline_rows([mine, while_training])] == [while_training["metric"], "my own metric"]
    assert [r["metric"] for r in headline_rows([mine, while_training, held_out])] == ["held-out loss", "my own metric"]
    assert "None has been measured" in card([])
    assert "more rows" not in card([mine])


def test_a_pipeline_that_starts_from_a_picture_is_opened_with_one() -> None:
    told = card([], {"base": "owner/base", "terms": {"license": "mit"}, "pictures": True, "lora": False})
    assert told.startswith("---\nlibrary_name: diffusers\npipeline_tag: image-to-video\nlicense: mit\n---\n\n# m\n")
    assert 'pipeline(load_image("start.png"), num_frames=8, height=32, width=32)' in told
    assert 'generate THIS_FOLDER --image "start.png"' in told and "--prompt" not in told and "adapters" not in told
    plain = card([])
    assert plain.startswith("---\nlibrary_name: reelwright\npipeline_tag: text-to-video\n---\n\n# m\n")
    assert "generate THIS_FOLDER --prompt" in plain and "diffusers" not in plain
