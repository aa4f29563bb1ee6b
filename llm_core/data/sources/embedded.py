"""The embedded site: the standard library's documentation behind a web server on loopback.

The server is an HTTP proxy for one host name that exists nowhere else, so that the pages' URLs do not hold the port
it happened to get. It has a robots.txt, and a folder that robots.txt closes.
"""

from __future__ import annotations

import html
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xxhash

HOST = "pydoc.localhost"
ROBOTS = b"User-agent: *\nDisallow: /drafts/\n"
RENDER_SECONDS = 300


@dataclass(frozen=True)
class Site:
    """The rendered site: the bytes of each path, and the question/answer pairs."""

    files: dict[str, bytes]
    dialogues: tuple[dict[str, str], ...]

    @property
    def pages(self) -> int:
        """Pages that robots.txt allows, without the index."""
        return sum(path.startswith(("/library/", "/topics/")) for path in self.files)

    @property
    def digest(self) -> str:
        """A digest of every path and byte."""
        hasher = xxhash.xxh3_128()
        for path, body in sorted(self.files.items()):
            hasher.update(path.encode() + b"\0" + body + b"\0")
        return hasher.hexdigest()


def render(folder: Path, modules: tuple[str, ...] = (), topics: bool = True) -> Site:
    """Render the documentation into the empty `folder`, in a child that sees nothing of this process.

    Raises `RuntimeError` with what the child said if it fails.
    """
    options = folder / "options.json"
    options.write_text(json.dumps({"modules": modules, "topics": topics}))
    program = Path(__file__).with_name("render_pydoc.py")
    result = subprocess.run(
        [sys.executable, "-s", "-P", "-S", str(program), str(folder.resolve()), str(options.resolve())],
        env={"PYTHONHASHSEED": "0"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=RENDER_SECONDS,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"rendering the documentation failed: {result.stderr.decode(errors='replace')[-1000:]}")
    return read_site(folder)


def read_site(folder: Path) -> Site:
    """The site that was rendered into `folder`."""
    files = {f"/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in sorted(folder.glob("*/*.html"))}
    lines = (folder / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    files["/drafts/unfinished.html"] = b"<html><body><p>Robots are asked not to read this page.</p></body></html>"
    files["/index.html"] = _index(sorted(files))
    files["/robots.txt"] = ROBOTS
    return Site(files, tuple(json.loads(line) for line in lines))


def _index(paths: list[str]) -> bytes:
    links = "\n".join(f'<li><a href="{html.escape(path)}">{html.escape(path)}</a></li>' for path in paths)
    head = '<title>Index</title><meta name="robots" content="noindex">'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body><ul>{links}</ul></body></html>'.encode()


def url_of(path: str) -> str:
    """The URL of a page, given its path without a leading slash."""
    return f"http://{HOST}/{path}"


def group_of(url: str) -> str:
    """What must not be divided between training and validation: the top-level module, or the topic."""
    folder, _, page = urlsplit(url).path.lstrip("/").partition("/")
    name = page.removesuffix(".html")
    return name.partition(".")[0] if folder == "library" else f"{folder}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    files: dict[str, bytes]

    def do_GET(self) -> None:
        """Answer a proxy request for the one host."""
        parts = urlsplit(self.path)
        body = self.files.get(parts.path or "/") if parts.hostname == HOST else None
        self.send_response(404 if body is None else 200)
        kind = "text/plain" if parts.path.endswith(".txt") else "text/html"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the crawl keeps its own log."""


@contextmanager
def serve(site: Site) -> Iterator[str]:
    """Serve the site on a free port of loopback; yields the proxy's URL."""
    handler = type("Handler", (_Handler,), {"files": site.files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
