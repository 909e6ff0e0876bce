"""The server as the network sees it: who gets in, which files come out, how it starts and how it refuses to."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from reelwright.children import child_environment
from reelwright.types import UsageError, UserError
from reelwright.ui import server
from reelwright.ui.guard import LOCAL_HOSTS, MAX_BODY_BYTES, MULTIPART_BYTES, Guard
from reelwright.ui.jobs import JobQueue
from reelwright.ui.server import ServerOptions
from reelwright.ui.workspace import Workspace

pytest.importorskip("gradio", reason="the extra `ui` is not installed")

SECRET = "the secret outside"
TOKEN = "a-token-of-some-length"
WAIT_SECONDS = 60.0
UPLOAD_BYTES = 2_000_000

# Each names secret.mp4, a file beside the workspace, or /etc/passwd, in one more way. `{outside}` is the folder's path.
PAYLOADS = [
    "../secret.mp4", "../../secret.mp4", "outputs/../../secret.mp4", "./../secret.mp4", "..//secret.mp4",
    "//..//secret.mp4", "outputs/..//../secret.mp4", "..\\secret.mp4", "outputs\\..\\..\\secret.mp4",
    "%2e%2e/secret.mp4", "%2e%2e%2fsecret.mp4", "..%2fsecret.mp4", "..%2Fsecret.mp4", ".%2e/secret.mp4",
    "%2e./secret.mp4", "..%5csecret.mp4", "..%5Csecret.mp4", "%252e%252e/secret.mp4", "%252e%252e%252fsecret.mp4",
    "..%252fsecret.mp4", "..%c0%afsecret.mp4", "%c0%ae%c0%ae/secret.mp4", "..%ef%bc%8fsecret.mp4",
    "%ef%bc%8e%ef%bc%8e/secret.mp4", "..%e2%88%95secret.mp4", "..;/secret.mp4", "..%00/secret.mp4",
    "../secret.mp4%00", "../secret.mp4%00.mp4", "../secret.mp4%20", "../secret.mp4.", "..%09/secret.mp4",
    "..%0a/secret.mp4", "%0d%0a../secret.mp4", "{outside}/secret.mp4", "/{outside}/secret.mp4",
    "//{outside}/secret.mp4", "%2f{outside}/secret.mp4", "file://{outside}/secret.mp4", "file:{outside}/secret.mp4",
    "file:%2f%2f{outside}/secret.mp4", "localhost{outside}/secret.mp4", "~/secret.mp4", "~root/secret.mp4",
    "C:/secret.mp4", "C:%5csecret.mp4", "%5c%5clocalhost%5csecret.mp4", "link.mp4", "outputs/link.mp4",
    "folder/secret.mp4", "outputs/loop.mp4", "folder/../secret.mp4", "/etc/passwd", "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "/proc/self/environ", "proc/self/environ", "/dev/zero",
    ".reelwright/jobs/000001.json", ".reelwright/lock", "outputs/../.reelwright/lock", "recipe.yaml", "notes.txt",
    "outputs", "outputs/", "", ".", "..", "%2e%2e", "con.mp4", "http://127.0.0.1/secret.mp4", "a" * 3000 + ".mp4",
]  # fmt: skip
PREFIXES = ("/media/", "/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/inspection/",
            "/gradio_api/proxy=", "/custom_component/", "/svelte/", "/")  # fmt: skip


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Site:
    """A running server, spoken to byte by byte: no client in between tidies the paths up."""

    port: int
    workspace: Workspace

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: Any) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", named.pop("Host", f"127.0.0.1:{self.port}"))
            if body is not None and "Content-Length" not in named:
                connection.putheader("Content-Length", str(len(body)))
            for name, value in named.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read(5_000_000))
        finally:
            connection.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """outputs/made.mp4, and around it a secret with symlinks that lead to it."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "root"
    (root / "outputs").mkdir(parents=True)
    (outside / "secret.mp4").write_text(SECRET)
    (root / "outputs" / "made.mp4").write_bytes(bytes(range(256)) * 8)
    (root / "notes.txt").write_text(SECRET)
    (root / "recipe.yaml").write_text(f"# {SECRET}\n")
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "outputs" / "link.mp4").symlink_to("../../secret.mp4")
    (root / "outputs" / "loop.mp4").symlink_to("loop.mp4")
    (root / "folder").symlink_to(outside)
    return root


@pytest.fixture(scope="module")
def start(root: Path) -> Iterator[Callable[..., Site]]:
    """`start(token, hosts)` -> the page behind a guard, on a port of its own; one page for all guards."""
    import uvicorn

    workspace = Workspace(root, UPLOAD_BYTES)
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", *server.ENVIRONMENT)}
    os.environ |= server.ENVIRONMENT | {"GRADIO_TEMP_DIR": str(workspace.upload_folder)}
    queue = JobQueue(workspace)
    app = server.build_app(workspace, queue)
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(token: str | None = None, hosts: frozenset[str] | None = LOCAL_HOSTS) -> Site:
        listener = server.bind(ServerOptions(root, port=0))
        port = listener.getsockname()[1]
        guard = Guard(app, port, token, hosts, workspace.max_upload_bytes)
        config = uvicorn.Config(guard, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        uvicorn_server = uvicorn.Server(config)
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((uvicorn_server, thread))
        return Site(port, workspace)

    yield begin
    for uvicorn_server, thread in running:
        uvicorn_server.should_exit = True
        thread.join(WAIT_SECONDS)
    queue.close()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def site(start: Callable[..., Site]) -> Site:
    return start()


@pytest.fixture(scope="module")
def locked(start: Callable[..., Site]) -> Site:
    return start(TOKEN, None)


def test_the_page_and_its_videos_are_served(site: Site, root: Path) -> None:
    page = site.ask("/")
    assert page.status == 200 and b"Reelwright" in page.body
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    made = site.ask("/media/outputs/made.mp4?v=1")
    assert made.status == 200 and made.body == (root / "outputs" / "made.mp4").read_bytes()
    assert made.headers["content-type"] == "video/mp4" and made.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in made.headers["content-security-policy"]
    part = site.ask("/media/outputs/made.mp4", Range="bytes=10-19")
    assert part.status == 206 and part.body == bytes(range(10, 20))


def test_there_are_sixty_payloads_and_more() -> None:
    assert len(set(PAYLOADS)) >= 60


@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_path_leads_out(site: Site, root: Path, prefix: str) -> None:
    outside = str(root.parent)
    page = site.ask("/").body
    for payload in PAYLOADS:
        text = payload.replace("{outside}", outside)
        for path in {prefix + quote(text, safe="/%:;~@="), prefix + quote(quote(text, safe=""), safe="%")}:
            answer = site.ask(path)
            assert SECRET.encode() not in answer.body and b"root:" not in answer.body, path
            assert answer.status in (400, 404, 403) or answer.body == page, (path, answer.status)


def test_what_gradio_serves_beside_the_page_is_not_passed_on(site: Site) -> None:
    refused = ["/monitoring", "/monitoring/summary", "/docs", "/openapi.json", "/gradio_api/openapi.json",
               "/robots.txt", "/gradio_api/runs", "/gradio_api/vibe-code", "/gradio_api/call/predict",
               "/gradio_api/deep_link", "/gradio_api/dev/reload", "/gradio_api/profiling/traces",
               "/gradio_api/token", "/login", "/token"]  # fmt: skip
    assert [path for path in refused if site.ask(path).status != 404] == []
    assert site.ask("/gradio_api/component_server", "POST", b"{}").status == 404


def test_only_this_machines_names_are_answered(site: Site) -> None:
    port = site.port
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"127.0.0.1:{port}", "LOCALHOST", "[::1]:80"):
        assert site.ask("/config", Host=host).status == 200, host
    others = ["evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1",
              "localhost@evil.example", "0.0.0.0", "", "localhost:80:80", "a b", "127.1",
              "[::ffff:127.0.0.1]"]  # fmt: skip
    for host in others:
        answer = site.ask("/config", Host=host)
        assert answer.status in (400, 403) and b"components" not in answer.body, host


def test_requests_of_other_sites_are_refused(site: Site) -> None:
    here = f"http://127.0.0.1:{site.port}"
    video = "/media/outputs/made.mp4"
    assert site.ask(video, Origin=here).status == 200
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{site.port + 1}",
        f"{here}.evil.example",
        "file://",
    ):
        assert site.ask(video, Origin=origin).status == 403, origin
        assert site.ask("/gradio_api/queue/join", "POST", b"{}", Origin=origin).status == 403, origin
    for where in ("cross-site", "same-site"):
        assert site.ask(video, Sec_Fetch_Site=where, Sec_Fetch_Mode="no-cors").status == 403
        assert site.ask(video, Sec_Fetch_Site=where, Sec_Fetch_Mode="navigate").status == 403
        assert site.ask("/", "POST", b"", Sec_Fetch_Site=where, Sec_Fetch_Mode="navigate").status == 403
        assert site.ask("/", Sec_Fetch_Site=where, Sec_Fetch_Mode="navigate").status == 200  # a link to the page
    assert site.ask(video, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors").status == 200


def test_nothing_is_served_without_the_token(locked: Site) -> None:
    for path in ("/", "/config", "/theme.css", "/assets/index.js", "/media/outputs/made.mp4", "/gradio_api/queue/data",
                 "/gradio_api/heartbeat/x", "/gradio_api/startup-events", "/inspection/1", "/login"):  # fmt: skip
        answer = locked.ask(path)
        assert answer.status == 401 and b"components" not in answer.body, path
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/refresh"):
        assert locked.ask(path, "POST", b"{}").status == 401, path
    assert b'type="password"' in locked.ask("/").body
    cookie = f"reelwright_{locked.port}"
    for value in ("", TOKEN, "x", f"{cookie}=x", f"{cookie}={TOKEN}", f"{cookie}=; {cookie}=x", f"other={TOKEN}"):
        assert locked.ask("/config", Cookie=value).status == 401, value


def test_a_web_socket_is_refused(site: Site, locked: Site) -> None:
    upgrade: dict[str, Any] = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
               "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    for where in (site, locked):
        assert where.ask("/gradio_api/queue/join", **upgrade).status in (401, 403, 404, 405)


def test_the_token_once_then_the_cookie(locked: Site) -> None:
    answer = locked.ask(f"/?token={TOKEN}")
    assert answer.status == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and TOKEN not in cookie
    value = cookie.split(";")[0]
    for path in ("/", "/config", "/media/outputs/made.mp4"):
        assert locked.ask(path, Cookie=f"other=1; {value}").status == 200, path
    assert locked.ask("/config", Cookie=value, Origin="http://evil.example").status == 403
    form = locked.ask("/login", "POST", f"token={TOKEN}".encode())
    assert form.status == 303 and form.headers["set-cookie"].split(";")[0] == value
    assert locked.ask("/config", Cookie=value, Host="studio.example").status == 200  # any name, as the token stands


def test_a_wrong_token_waits_and_is_refused(locked: Site) -> None:
    for path, method, body in (("/?token=wrong", "GET", None), ("/login", "POST", b"token=wrong")):
        began = time.monotonic()
        answer = locked.ask(path, method, body)
        assert answer.status == 401 and "set-cookie" not in answer.headers, path
        assert time.monotonic() - began > 0.9
    assert locked.ask("/login", "POST", b"token=" + b"x" * 10_000).status == 401
    assert locked.ask("/?token=%ff%00").status == 401
    assert locked.ask(f"/config?token={TOKEN}").status == 401  # the page's first address alone


def test_a_token_for_the_network_is_a_must() -> None:
    with pytest.raises(ValueError, match="token"):
        Guard(None, 1, None, None, 1)
    with pytest.raises(UsageError, match="--token: 5 characters"):
        ServerOptions(Path(), token="short")


def test_bodies_are_limited(site: Site) -> None:
    over = str(MAX_BODY_BYTES + 1)
    assert site.ask("/gradio_api/queue/join", "POST", b"", Content_Length=over).status == 413
    assert (
        site.ask("/gradio_api/upload", "POST", b"", Content_Length=str(UPLOAD_BYTES + MULTIPART_BYTES + 1)).status
        == 413
    )
    assert site.ask("/gradio_api/queue/join", "POST", b"", Content_Length="-1").status in (400, 413)


def upload(site: Site, content: bytes, name: str = "clip.mp4") -> Answer:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return site.ask("/gradio_api/upload", "POST", head + content + b"\r\n--x--\r\n",
                    Content_Type="multipart/form-data; boundary=x")  # fmt: skip


def test_uploads_arrive_in_their_folder_alone(site: Site) -> None:
    incoming = site.workspace.upload_folder
    for name in ("clip.mp4", "../../clip.mp4", "/etc/clip.mp4", "..%2f..%2fclip.mp4", "..\\..\\clip.mp4"):
        answer = upload(site, b"x" * 1000, name)
        assert answer.status == 200, name
        paths = [Path(path) for path in re.findall(r'"([^"]+)"', answer.body.decode())]
        assert paths and all(path.resolve().is_relative_to(incoming.resolve()) for path in paths), paths
    assert upload(site, b"x" * (UPLOAD_BYTES + 10)).status == 413
    assert not (site.workspace.root / "clip.mp4").exists() and not (site.workspace.root.parent / "clip.mp4").exists()


def test_a_taken_port_is_one_message(tmp_path: Path, run_cli) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        output = run_cli("ui", "--workspace", tmp_path, "--port", port)
    assert output.code == 1 and f"--port {port}: taken" in output.err and "Traceback" not in output.err
    assert not (tmp_path / ".reelwright" / "lock").exists()


def test_mistakes_are_one_message(tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("ui", "--workspace", tmp_path / "none").code == 2
    output = run_cli("ui", "--workspace", tmp_path, "--token", "short")
    assert output.code == 2 and "at least 12" in output.err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    output = run_cli("ui", "--workspace", tmp_path)
    assert output.code == 1 and "pip install 'reelwright[ui]'" in output.err and "Traceback" not in output.err


def test_nothing_is_fetched_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the jobs' processes are given; a library asked for a hub id then looks at what is there, and no further."""
    for name in (*server.ENVIRONMENT, *server.OFFLINE, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "0")
    given: list[dict[str, str]] = []
    monkeypatch.setattr(server, "build_app", lambda workspace, queue: None)
    monkeypatch.setattr(server, "_run", lambda app, listener: given.append(child_environment()))
    server.serve(ServerOptions(tmp_path, port=0, fetch=True), lambda line: None)
    server.serve(ServerOptions(tmp_path, port=0), lambda line: None)
    assert [{env[name] for name in server.OFFLINE} for env in given] == [{"0"}, {"1"}]
    assert all(env["HF_HUB_DISABLE_TELEMETRY"] == "1" for env in given)
    load = "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"
    for env, offline in zip(given, ("False", "True"), strict=True):
        assert (
            subprocess.run([sys.executable, "-c", load], env=env, capture_output=True, text=True).stdout
            == f"{offline}\n"
        )


def test_one_page_a_workspace(site: Site) -> None:
    with pytest.raises(UserError, match="open on this workspace already"):
        server.serve(ServerOptions(site.workspace.root, port=0), lambda line: None)


def test_listen_makes_a_token_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reelwright", "ui", "--workspace", str(tmp_path), "--port", "0", "--listen"]
    environment = {name: value for name, value in os.environ.items() if name != "REELWRIGHT_TOKEN"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+?:(\d+)/\?token=(\S{20,})", process.stdout.readline())
        assert match
        site = Site(int(match[1]), Workspace(tmp_path))
        assert site.ask("/config").status == 401
        assert site.ask(f"/?token={match[2]}").status == 303
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 0
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    shutil.rmtree(tmp_path / ".reelwright")


def test_logging_in_with_a_browser(locked: Site) -> None:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{locked.port}/")
        page.fill("input", "not-the-token")
        page.click("button")
        page.get_by_text("That is not the token").wait_for()
        page.fill("input", TOKEN)
        page.click("button")
        page.locator("#generate-go").wait_for(timeout=WAIT_SECONDS * 1000)
        assert page.evaluate("document.cookie") == "" and TOKEN not in page.url
        browser.close()
