"""`reelwright ui`: the page's server, on this machine alone unless told otherwise, from start to a clean end."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from reelwright.types import UsageError, UserError
from reelwright.ui.guard import LOCAL_HOSTS, MIN_TOKEN_CHARACTERS, Guard
from reelwright.ui.incoming import clear_incoming
from reelwright.ui.jobs import JobQueue
from reelwright.ui.workspace import Workspace

if TYPE_CHECKING:
    from fastapi import FastAPI

EXTRA = ("gradio", "fastapi", "uvicorn")
LOCAL_ADDRESS, ANY_ADDRESS = "127.0.0.1", "0.0.0.0"
OPEN_REQUEST_SECONDS = 2  # what is left to open pages when the server is stopped
# Before Gradio is imported, for the jobs' processes too: nothing is reported to anyone.
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # a hub id means what was fetched before

Say = Callable[[str], None]


@dataclass(frozen=True)
class ServerOptions:
    """Where the page is served, and to whom. `port` 0: any that is free. `token` None with `listen`: one is made.

    `fetch`: jobs may fetch the models that recipes name by a hub id.
    """

    workspace: Path
    port: int = 7860
    listen: bool = False
    token: str | None = None
    fetch: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < MIN_TOKEN_CHARACTERS or not self.token.isprintable()):
            raise UsageError(
                f"--token: {len(self.token)} characters; give at least {MIN_TOKEN_CHARACTERS} printable ones, or leave "
                "it out with --listen and one is made"
            )


def serve(options: ServerOptions, say: Say) -> None:
    """Serve until SIGINT or SIGTERM; then stop what runs (training saves first) and return.

    UserError where the extra is missing, the port is taken, or another server has the workspace.
    """
    check_extra()
    workspace = Workspace(options.workspace)
    with contextlib.closing(bind(options)) as listener:
        port = listener.getsockname()[1]
        token = options.token or (secrets.token_urlsafe(24) if options.listen else None)
        queue = JobQueue(workspace)
        os.environ |= ENVIRONMENT | {"GRADIO_TEMP_DIR": str(workspace.upload_folder)}
        os.environ |= {} if options.fetch else OFFLINE
        clear_incoming(workspace.upload_folder, 0.0)
        try:
            guarded = Guard(
                build_app(workspace, queue),
                port,
                token,
                None if options.listen else LOCAL_HOSTS,
                workspace.max_upload_bytes,
            )
            host = socket.gethostname() if options.listen else LOCAL_ADDRESS
            say(f"{_address(host, port, token if options.listen and options.token is None else None)}")
            say(f"workspace {workspace.root}; Ctrl-C stops the server and what it runs")
            _run(guarded, listener)
        finally:
            if any(job.state == "running" for job in queue.list()):
                say("stopping what runs; training saves first")
            queue.close()


def check_extra() -> None:
    """UserError with the way out where the page's libraries are not installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the page needs {', '.join(missing)}: pip install 'reelwright[ui]'")


def bind(options: ServerOptions) -> socket.socket:
    """The listening socket. UserError where the port is taken or may not be had."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ANY_ADDRESS if options.listen else LOCAL_ADDRESS, options.port))
        listener.listen(128)  # requests wait while the page is built
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port {options.port}: taken by another program, perhaps by a page that is open already; give "
                f"another, such as --port {options.port + 1}, or --port 0 for any that is free"
            ) from None
        raise UserError(f"--port {options.port}: cannot be used ({error.strerror}); give one above 1023") from None
    return listener


def build_app(workspace: Workspace, queue: JobQueue) -> FastAPI:
    """The page and the files it shows, without the guard that belongs before it."""
    import gradio as gr
    from fastapi import FastAPI

    from reelwright.ui.look import STYLE, theme
    from reelwright.ui.media import add_media_routes
    from reelwright.ui.pages import build_page

    app = FastAPI(title="Reelwright", docs_url=None, redoc_url=None, openapi_url=None)
    add_media_routes(app, workspace, queue)
    return gr.mount_gradio_app(
        app, build_page(workspace, queue), path="/", theme=theme(), css=STYLE, footer_links=[], run_history=False,
        allowed_paths=[], show_error=False, max_file_size=workspace.max_upload_bytes, ssr_mode=False,
        enable_monitoring=False, pwa=False, mcp_server=False,
    )  # fmt: skip


def _run(app: Any, listener: socket.socket) -> None:
    """Until a signal. uvicorn raises the signal anew once it has ended; it must not end us before the jobs ended."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=OPEN_REQUEST_SECONDS, ws="none",
        server_header=False, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _address(host: str, port: int, token: str | None) -> str:
    """The page's first address; the token is in it only where it was made here and nobody knows it yet."""
    return f"http://{host}:{port}/" + (f"?token={token}" if token else "")
