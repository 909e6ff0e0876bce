from __future__ import annotations

from typing import Any

import pytest

from reelwright.training.config import RESUMABLE_KEYS, TrainConfig
from reelwright.types import UsageError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps = 0: "),
        ({"steps": -5}, "steps = -5: "),
        ({"steps": None}, "steps = None and epochs = None: give exactly one"),
        ({"epochs": 1}, r"steps = 1000 and epochs = 1\.0: give exactly one"),
        ({"steps": None, "epochs": 0}, "epochs = 0: "),
        ({"batch_size": 0}, "batch_size = 0: "),
        ({"micro_batch": 0}, "micro_batch = 0: must be 'auto' or at least 1"),
        ({"micro_batch": "big"}, "micro_batch = 'big': "),
        ({"learning_rate": -1e-3}, "learning_rate = -0.001: "),
        ({"learning_rate": True}, "learning_rate = true: "),
        ({"betas": (0.9, 1.0)}, r"betas = \(0\.9, 1\.0\): both must be in"),
        ({"ema": 1.0}, r"ema = 1\.0: "),
        ({"caption_dropout": 1}, "caption_dropout = 1: "),
        ({"mixup": 0.5, "batch_size": 5}, "batch_size = 5 must be even"),
        ({"mixup": [0.5, 0], "batch_size": 5}, r"mixup = \[0\.5, 0\.0\]: samples are mixed two by two"),
        ({"mixup": [2, 0]}, r"mixup = \[2\.0, 0\.0\]: shares from 0 to 1, one number or a list"),
        ({"mixup": -0.1}, r"mixup = -0\.1: shares from 0 to 1"),
        ({"mixup": 0.5, "batch_size": 4, "micro_batch": 1}, "micro_batch = 1 at least 2"),
        ({"keep_checkpoints": 0}, "keep_checkpoints = 0: "),
        ({"clip_norm": 0}, "clip_norm = 0: "),
        ({"precision": "fp8"}, "precision = 'fp8': "),
        ({"track_best": True, "evaluate_every": 0}, "track_best = true has no effect"),
        ({"lr_schedule": "constant", "final_lr_fraction": 0.1}, "final_lr_fraction = 0.1 has no effect"),
        ({"sample_prompts": 0}, "sample_prompts = 0: at least one"),
        ({"sample_prompts": -1}, "sample_prompts = -1: at least one"),
        ({"sample_prompts": []}, r"sample_prompts = \(\): at least one"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.parse(values)


def test_resumable_keys_are_fields() -> None:
    assert {name.removeprefix("train.") for name in RESUMABLE_KEYS} <= set(TrainConfig.model_fields)
