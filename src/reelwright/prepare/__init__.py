"""Data -> cache: decode, fit what must be fitted, encode, tokenize. The same command again does only what changed."""

from __future__ import annotations

from reelwright.prepare.engine import Engine
from reelwright.prepare.reading import EMPTY, Prepared, manifest_key, open_prepared
from reelwright.prepare.summary import Summary
from reelwright.prepare.verb import prepare

__all__ = ["EMPTY", "Engine", "Prepared", "Summary", "manifest_key", "open_prepared", "prepare"]
