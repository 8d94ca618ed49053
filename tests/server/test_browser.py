"""Pages in a real browser, Debian's Chromium: whose may talk to a tool server on this machine."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
import pytest
from support.tool_server import Thread, port_of

from utcp_websocket_anyio import ToolServer

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
    pytest.mark.timeout(180),
]

PAGE = b"""<!doctype html><script>
const urls = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const ask = url => new Promise(resolve => {
  const socket = new WebSocket(url);
  const call = {type: "call_tool", request_id: 1, tool_name: "secret", arguments: {}};
  socket.onopen = () => socket.send(JSON.stringify(call));
  socket.onmessage = event => resolve(JSON.parse(event.data).result);
  socket.onerror = () => resolve(null);
});
Promise.all(urls.map(ask)).then(results =>
  fetch("/report?results=" + encodeURIComponent(JSON.stringify(results))));
</script>"""


@contextmanager
def website() -> Iterator[tuple[int, queue.Queue[Any]]]:
    """A site whose page asks every server in its fragment, and reports what it was told; gives its port."""
    reports: queue.Queue[Any] = queue.Queue()

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/report":
                reports.put(json.loads(parse_qs(address.query)["results"][0]))
            body = PAGE if address.path == "/" else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], reports
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def browser(page: str, folder: Path) -> Iterator[None]:
    """A browser that shows a page. Names of example.com lead to this machine in it, as after DNS rebinding."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--no-proxy-server",
        "--remote-debugging-port=0",
        "--host-resolver-rules=MAP *.example.com 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}",
        page,
    ]
    own = {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env={"PATH": "/usr/bin:/bin", **own}, stdout=quiet, stderr=quiet) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


async def told(page: str, urls: list[str], reports: queue.Queue[Any], folder: Path) -> Any:
    """The servers' answers to a page, or None where it cannot connect."""
    fragment = json.dumps(urls, separators=(",", ":"))
    with anyio.fail_after(150), browser(f"{page}#{fragment}", folder):
        return await anyio.to_thread.run_sync(lambda: reports.get(timeout=140))


def keeper(**options: Any) -> ToolServer:
    server = ToolServer("keeper", **options)

    @server.tool
    async def secret() -> str:
        return "secret"

    return server


@pytest.mark.parametrize("anyio_backend", [("asyncio", {}), ("trio", {})], ids=["asyncio", "trio"])
class TestPages:
    async def test_only_pages_of_allowed_origins_can_connect(self, thread: Thread, tmp_path: Path) -> None:
        with website() as (port, reports):
            page = f"http://127.0.0.1:{port}"
            urls = [
                await thread.serve(keeper(origins=[page])),
                await thread.serve(keeper()),
                await thread.serve(keeper(origins=["http://127.0.0.1", "https://good.example.com"])),
                await thread.serve(keeper(origins=[page], token="t0ken")),
                await thread.serve(keeper(origins=[page], token="t0ken")) + "/?token=t0ken",
            ]
            assert await told(f"{page}/", urls, reports, tmp_path) == ["secret", None, None, None, "secret"]

    async def test_a_page_whose_name_was_made_to_lead_here_cannot(self, thread: Thread, tmp_path: Path) -> None:
        with website() as (port, reports):
            page = f"http://evil.example.com:{port}"
            refusing = await thread.serve(keeper(origins=[page]))
            knowing = await thread.serve(keeper(origins=[page], hosts=["evil.example.com"]))
            urls = [f"ws://evil.example.com:{port_of(url)}" for url in (refusing, knowing)]
            assert await told(f"{page}/", urls, reports, tmp_path) == [None, "secret"]
