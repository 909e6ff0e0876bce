"""Data -> cache: decode, fit what must be fitted, encode, tokenize. The same command again does only what changed."""

from __future__ import annotations

from reelwright.prepare.engine import Engine
from reelwright.prepare.reading import EMPTY, Prepared, is_prepared, manifest_key, open_prepared
from reelwright.prepare.summary import Summary
from reelwright.prepare.verb import prepare

__all__ = ["EMPTY", "Engine", "Prepared", "Summary", "is_prepared", "manifest_key", "open_prepared", "prepare"]
