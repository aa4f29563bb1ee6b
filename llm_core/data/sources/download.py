"""Large files over http(s): resumed by Range where they broke off, patient with a server that asks for time.

A part file and, beside it, the ETag it belongs to survive a kill. A refusal (404, 403) ends at once; 429 and 5xx, a
broken connection and a short body are tried again from where the part ends, after the time that Retry-After names or a
growing pause. Only tries that brought nothing new are counted.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx

from llm_core.artifacts import write_atomic
from llm_core.data.web.addresses import AddressPolicy, PrivateAddress

AGENT = "groundup/0.1 (reads public data sets; resumes and waits)"
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_PORTS = {"http": 80, "https": 443}
_RANGE = re.compile(r"bytes (\d+)-\d*/(\d+|\*)")


class DownloadFailed(RuntimeError):
    """A file that could not be fetched; what came so far is kept for the next try."""


class Cancelled(RuntimeError):
    """The download was asked to end; what came so far is kept."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without an answer, fruitless tries, first pause, longest pause (also of Retry-After)."""

    timeout: float = 60.0
    tries: int = 8
    pause: float = 1.0
    longest: float = 600.0


def client(timeout: float = 60.0, home: str = "") -> httpx.Client:
    """A client that follows redirects and takes bytes as they are.

    It reaches the host of `home`, which the settings name, wherever that stands. Another host, to which it can only
    be sent, must stand at a public address: this is looked up before it is asked, and seen again at the connection
    before anything of the answer is read, so that neither a redirect nor a name whose answer changes leads inside.
    """
    known = httpx.URL(home).host

    def before(request: httpx.Request) -> None:
        if request.url.host != known and not _by_proxy(request.url):
            try:
                AddressPolicy().resolve(request.url.host, request.url.port or _PORTS.get(request.url.scheme, 80))
            except PrivateAddress as error:
                raise DownloadFailed(f"{home or request.url}: sent to where no download may go: {error}") from error
            except OSError as error:
                raise httpx.ConnectError(f"{request.url.host} cannot be resolved ({error})", request=request) from error

    def after(response: httpx.Response) -> None:
        url, stream = response.request.url, response.extensions.get("network_stream")
        if url.host != known and not _by_proxy(url) and stream is not None:
            address = stream.get_extra_info("server_addr")
            if why := AddressPolicy().refusal(url.host, str(address[0])) if address else None:
                raise DownloadFailed(f"{home or url}: sent to where no download may go: {why}")

    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    return httpx.Client(
        timeout=httpx.Timeout(timeout, connect=min(timeout, 15.0)),
        follow_redirects=True,
        headers=headers,
        event_hooks={"request": [before], "response": [after]},
    )


def _by_proxy(url: httpx.URL) -> bool:
    """Whether a proxy of the environment stands before this URL: then the proxy looks names up, and nobody here can."""
    proxies = getproxies()
    return bool(proxies.get(url.scheme) or proxies.get("all")) and not proxy_bypass(url.host)


def download(
    session: httpx.Client,
    url: str,
    target: Path,
    *,
    patience: Patience = Patience(),
    tell: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Fetch `url` into `target`, which appears when it is whole; `tell` gets the bytes so far.

    Raises `DownloadFailed` naming the URL, or `Cancelled` once `stop` is set.
    """
    stop = stop or threading.Event()
    part = target.with_name(f"{target.name}.part")
    tries, size = 0, -1
    while True:
        have = part.stat().st_size if part.is_file() else 0
        tries = 0 if have > size else tries + 1
        size = max(size, have)
        wait: float | None = None
        try:
            wait, problem = _attempt(session, url, part, have, tell, stop)
            if problem is None:
                break
        except (httpx.TransportError, httpx.DecodingError) as error:
            problem = str(error) or type(error).__name__
        if tries >= patience.tries:
            raise DownloadFailed(f"{url}: {problem}, {tries} times in a row without a byte more than {size:,}")
        pause = patience.pause * 2**tries if wait is None else wait
        resume = time.monotonic() + min(pause, patience.longest)
        while (left := resume - time.monotonic()) > 0:
            tell(have)
            if stop.wait(min(left, 0.25)):
                raise Cancelled(url)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.rename(target)
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _attempt(
    session: httpx.Client, url: str, part: Path, have: int, tell: Callable[[int], None], stop: threading.Event
) -> tuple[float | None, str | None]:
    """(seconds the server asks for or None, what was wrong or None when the file is whole)."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and _tag(part).is_file():
        headers["If-Range"] = _tag(part).read_text()
    with session.stream("GET", url, headers=headers) as answer:
        status = answer.status_code
        if status in _AGAIN:
            return retry_after(answer.headers.get("Retry-After")), f"status {status}"
        if status == 416 or (status == 206 and not _continues(answer, have)):
            if status == 416 and answer.headers.get("Content-Range") == f"bytes */{have}":
                return None, None
            part.unlink(missing_ok=True)
            return 0.0, "the part does not fit the file"
        if status not in (200, 206):
            raise DownloadFailed(f"{url}: status {status}")
        tag = answer.headers.get("ETag")
        if status == 200:
            have = 0
            _tag(part).unlink(missing_ok=True)
            if tag and not tag.startswith("W/"):
                write_atomic(_tag(part), tag.encode("latin-1", "replace"))
        total = _total(answer, have)
        with open(part, "r+b" if have else "wb", buffering=0) as file:  # what came is kept, however it ends
            file.seek(have)
            for chunk in answer.iter_raw():
                file.write(chunk)
                have += len(chunk)
                tell(have)
                if stop.is_set():
                    raise Cancelled(url)
    if total is not None and have != total:
        return None, f"{have:,} of {total:,} bytes"
    return None, None


def _continues(answer: httpx.Response, have: int) -> bool:
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == have


def _total(answer: httpx.Response, have: int) -> int | None:
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is not None and match[2] != "*":
        return int(match[2])
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, in either of its forms; None if it says nothing sensible."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


class Ahead:
    """Files fetched in the background, a few at a time and no further ahead, handed out in order."""

    def __init__(self, fetch: Callable[[int, threading.Event], None], count: int, at_once: int) -> None:
        """`fetch(number, stop)` runs in threads for the numbers below `count`; `at_once` is also how far ahead."""
        self._fetch = fetch
        self._stop = threading.Event()
        self._count, self._at_once = count, at_once
        self._threads: dict[int, threading.Thread] = {}
        self._failures: dict[int, Exception] = {}

    def get(self, number: int, waiting: Callable[[], None]) -> None:
        """Return when file `number` is there; raises what its fetch raised. `waiting` is called four times a second."""
        for ahead in range(number, min(number + self._at_once, self._count)):
            if ahead not in self._threads:
                self._threads[ahead] = threading.Thread(target=self._run, args=(ahead,), daemon=True)
                self._threads[ahead].start()
        while self._threads[number].is_alive():
            self._threads[number].join(0.25)
            waiting()
        if number in self._failures:
            raise self._failures.pop(number)

    def _run(self, number: int) -> None:
        try:
            self._fetch(number, self._stop)
        except Exception as error:  # handed to whoever waits for this file
            self._failures[number] = error

    def close(self, seconds: float = 2.0) -> None:
        """Ask all fetches to end, and wait a moment for them; what they hold is kept on disk."""
        self._stop.set()
        end = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(0.0, end - time.monotonic()))
