"""What was computed from weights made elsewhere, kept in the cache's folder until one of their files changes.

A frozen text encoder and the base of adapters are gigabytes; that they are the same as at the last start is seen by
their files (device, inode, size, mtime, ctime), without loading or hashing anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reelwright import __version__
from reelwright.data.fingerprints import FileFacts, Journal
from reelwright.recipe import Recipe
from reelwright.types import Text, UserError

JOURNAL = "fingerprints.jsonl"  # in the cache's folder
FINGERPRINTS = 1  # to be raised when a `fingerprint()` or a prompt template of ours changes


def remembered(recipe: Recipe, group: str, compute: Callable[[], str]) -> str:
    """`compute()` of what `group` of the recipe ("text", "model") names, or what it gave before for the same files.

    Kept where the recipe's cache folder is there: whoever only reads makes none.
    """
    facts, name = _facts(recipe), _name(recipe, group)
    return facts.get(name, _files(recipe, group), compute) if facts else compute()


def _facts(recipe: Recipe) -> FileFacts | None:
    return FileFacts(Journal(recipe.cache_dir / JOURNAL)) if recipe.cache_dir.is_dir() else None


def _name(recipe: Recipe, group: str) -> str:
    """The settings the value depends on beside the files, and the libraries that read them."""
    settings = {group: getattr(recipe, group).plain()}
    if group == "model":
        settings["start_from"] = str(recipe.train.start_from)
    versions = [version(library) for library in ("torch", "transformers", "diffusers")]
    return json.dumps([settings, versions, __version__, FINGERPRINTS], sort_keys=True)


def _files(recipe: Recipe, group: str) -> list[Path]:
    """Every file the value can depend on; none where they are not known."""
    sources = [getattr(getattr(recipe, group), "model", None)]
    if group == "model" and recipe.train.start_from is not None:
        sources.append(str(recipe.train.start_from))
    places = [_place(source) for source in sources if source is not None]
    if not places or None in places:
        return []
    return sorted(path for place in places if place for path in _within(place))


def _place(source: str) -> Path | None:
    """The folder or file of a model; of a hub id its snapshot on this machine, None where there is none."""
    path = Path(source)
    if path.exists():
        return path.resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (OSError, ValueError):  # not fetched yet, or no such id: loading it says so
        return None


def _within(place: Path) -> list[Path]:
    """The file, or every file below the folder, those behind links to folders too."""
    if place.is_file():
        return [place]
    found: list[Path] = []
    entered: set[Path] = set()  # a link may lead back up
    for folder, below, names in os.walk(place, followlinks=True):
        if (real := Path(folder).resolve()) in entered:
            below.clear()
            continue
        entered.add(real)
        found += [path for name in names if (path := Path(folder) / name).is_file()]
    return found


class DeferredText:
    """A frozen text encoder that is loaded when something of it beyond its fingerprint is wanted."""

    trainable = False

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._encoder = recipe, None
        self._fingerprint = ""
        self._fingerprint = remembered(recipe, "text", lambda: self.loaded.fingerprint())

    def fingerprint(self) -> str:
        """sha256 over what embeddings depend on."""
        return self._fingerprint

    @property
    def loaded(self) -> Any:
        """The encoder. UserError where it is not the one its fingerprint was taken of."""
        if self._encoder is None:
            self._encoder = self._recipe.text.build()
            if self._fingerprint and self._encoder.fingerprint() != self._fingerprint:  # its hub has a newer one
                facts = _facts(self._recipe)
                if facts is not None:
                    facts.forget(_name(self._recipe, "text"))
                raise UserError(
                    f"text.model = {self._recipe.plain()['text']['model']}: was replaced while this command ran; start "
                    "it again"
                )
        return self._encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded, name)

    def __call__(self, tokens: Text) -> Text:
        return self.loaded(tokens)
