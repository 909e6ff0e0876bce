"""The files a page shows: videos of the workspace by name, and the report of an inspection job. Nothing else."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response

from reelwright.types import UserError
from reelwright.ui.jobs import JobQueue
from reelwright.ui.workspace import Workspace

MEDIA_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".gif": "image/gif",
    ".mkv": "video/x-matroska", ".avi": "video/x-msvideo",
}  # fmt: skip
INSPECTION = "inspection.html"
_HARMLESS = {"content-security-policy": "default-src 'none'; sandbox", "cache-control": "private, no-cache"}
# The report needs its own inline styles and pictures, and no script.
_REPORT = {
    "content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; "
    "frame-ancestors 'self'",
    "cache-control": "private, no-cache",
}


def add_media_routes(app: FastAPI, workspace: Workspace, queue: JobQueue) -> None:
    """GET /media/NAME, a video, in parts where the browser asks for parts; GET /inspection/JOB."""

    @app.get("/media/{name:path}")
    def media(name: str) -> Response:
        try:
            path = workspace.resolve(name, "video", "media")
        except UserError as error:
            return PlainTextResponse(str(error), 404, _HARMLESS)
        kind = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
        return FileResponse(path, media_type=kind, headers=_HARMLESS)

    @app.get("/inspection/{job_id}")
    def inspection(job_id: str) -> Response:
        path = inspection_page(workspace, queue, job_id)
        if path is None:
            return PlainTextResponse("There is no report of this number.", 404, _HARMLESS)
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=_REPORT)


def inspection_page(workspace: Workspace, queue: JobQueue, job_id: str) -> Path | None:
    """The report a finished inspection left; None where there is none."""
    try:
        job = queue.get(job_id)
    except UserError:
        return None
    path = workspace.private_folder("jobs") / job.id / INSPECTION
    return path if job.kind == "inspect" and path.is_file() and not path.is_symlink() else None
