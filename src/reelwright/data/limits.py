"""What decoding one file may cost: settings of a recipe, enforced by `data.sandbox`."""

from __future__ import annotations

from pydantic import Field

from reelwright.config import Config


class LimitsConfig(Config):
    """Bounds of one decoding job, kept by the child process that does it. A file that reaches one counts as bad."""

    memory_mb: int = Field(default=2048, ge=256, le=2**24)  # that decoding may take, beyond an idle child's own
    seconds: float = Field(default=60.0, gt=0, le=1e6)  # of processor time, and more by the file's size
