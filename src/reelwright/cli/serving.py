"""Commands that serve: ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reelwright.cli.app import app


@app.command()
def ui(
    workspace: Annotated[Path, typer.Option(help="the folder the page may see; nothing outside it is read")] = Path(),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 7860,
    listen: Annotated[bool, typer.Option("--listen", help="for the network too; asks for a token")] = False,
    token: Annotated[
        str | None, typer.Option(envvar="REELWRIGHT_TOKEN", help="what to log in with; made for --listen if not given")
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="let jobs fetch what recipes name by a hub id; else nothing is fetched")
    ] = False,
) -> None:
    """The page in a browser: generate, refine, look at data, train, evaluate."""
    from reelwright.ui.server import ServerOptions, serve

    serve(ServerOptions(workspace, port, listen, token, fetch), lambda line: print(line, flush=True))
