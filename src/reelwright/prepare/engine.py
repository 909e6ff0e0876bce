"""Where `prepare` encodes: a choice of the command, not of the recipe, for it changes nothing of what is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reelwright.types import UsageError

ENGINES = ("local", "ray")
_SETTINGS = ("engine", "address", "workers")


@dataclass(frozen=True)
class Engine:
    """local: in this process and those it was launched with, each decoding in `workers` child processes.

    ray: on the Ray cluster at `address`, or on one started here; `workers` decoders in all.
    """

    name: str = "local"
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UsageError(f"engine = '{self.name}': use {' or '.join(ENGINES)}")
        if self.address is not None and self.name != "ray":
            raise UsageError(f"address = '{self.address}' is that of a Ray cluster: it needs engine=ray")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers = {self.workers}: at least 1, or leave it out to choose by the processors")


def parse_engine(
    overrides: Sequence[str], engine: str = "local", address: str | None = None, workers: int | None = None
) -> tuple[list[str], Engine]:
    """(the overrides that are the recipe's, the engine): `engine=ray` among them means what `--engine ray` does."""
    rest, found = [], {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals and name in _SETTINGS:
            found[name] = value
        else:
            rest.append(override)
    if "workers" in found:
        try:
            workers = int(found["workers"])
        except ValueError:
            raise UsageError(f"workers = '{found['workers']}': a whole number, at least 1") from None
    return rest, Engine(found.get("engine", engine), found.get("address", address), workers)
