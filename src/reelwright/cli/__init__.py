"""The command line. It only reads options and prints; every verb is a function in a file of its own.

Importing a module of this package adds its commands, in the order in which `reelwright --help` lists them.
"""

from reelwright.cli import projects, datasets, training, videos, measuring  # noqa: F401, I001
from reelwright.cli import experimenting  # noqa: F401, I001
from reelwright.cli import exporting  # noqa: F401, I001
from reelwright.cli import serving  # noqa: F401, I001
from reelwright.cli.app import app, main

__all__ = ["app", "main"]
