"""What a crawl would do with a URL, without crawling: only robots.txt is fetched, through the same address policy."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

from llm_core.contract import BadInput
from llm_core.data.web.addresses import AddressPolicy, PrivateAddress
from llm_core.data.web.job import AGENT, CrawlJob
from llm_core.data.web.robots import LIMIT, Robots
from llm_core.data.web.urls import canonical

MAX_REDIRECTS = 5
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What would happen to a URL.

    `allowed` is the whole answer and `why` its reason: the first of scope, address and robots.txt that says no.
    `scope`, `address` and `robots` are what each of them says; `delay` is seconds between two requests to the host.
    """

    url: str
    canonical: str
    allowed: bool
    why: str
    in_scope: bool
    scope: str
    public: bool
    address: str
    robots: str
    rule: str
    delay: float
    sitemaps: tuple[str, ...] = ()


def check(url: str, job: CrawlJob | None = None) -> Finding:
    """What the crawl of `job` would do with `url`; without a job, one that starts there with the default settings.

    Nothing but robots.txt is asked for, and nothing at an address that the job does not allow. Takes at most some ten
    seconds. Raises `BadInput` for what is no http or https URL.
    """
    target = canonical(url)
    if target is None:
        raise BadInput(f"{url!r} is not an http or https URL")
    job = job or CrawlJob(store="", start=(target,), contact=AGENT)
    inside = target in job.starts() or job.scope().admits(target)
    scope = "it is in scope" if inside else job.scope().refusal(target) or ""
    if target in job.starts():
        scope = "it is a start URL"
    finding = Finding(url, target, False, scope, inside, scope, True, "", "not asked", "", job.delay)
    policy = AddressPolicy(job.allow_private)
    parts = urlsplit(target)
    try:
        found = policy.resolve(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except PrivateAddress as error:
        return _decided(replace(finding, public=False, address=str(error)), str(error))
    except OSError as error:
        why = f"{parts.hostname} cannot be resolved ({error.strerror or error})"
        return _decided(replace(finding, address=why), why)
    finding = replace(finding, address=", ".join(address for _, address in found))
    return _by_robots(finding, job, policy, min(SECONDS, job.timeout))


def _by_robots(finding: Finding, job: CrawlJob, policy: AddressPolicy, timeout: float) -> Finding:
    parts = urlsplit(finding.canonical)
    site = f"{parts.scheme}://{parts.netloc}/robots.txt"
    try:
        status, body = fetch(site, policy, timeout, job.user_agent)
        robots = Robots.from_answer(status, body, AGENT)
        answer = f"answers {status}"
    except (OSError, http.client.HTTPException) as error:
        answer = f"cannot be had: {getattr(error, 'strerror', None) or error or type(error).__name__}"
        robots = Robots.closed(f"robots.txt {answer}")
    verdict = robots.verdict(finding.canonical)
    delay = max(job.delay, robots.delay or 0.0)
    finding = replace(finding, robots=answer, rule=verdict.rule, delay=delay, sitemaps=tuple(robots.sitemaps))
    if not verdict.allowed:
        return _decided(finding, f"robots.txt forbids it: {verdict.rule}")
    if robots.delay and robots.delay > job.max_crawl_delay:
        return _decided(finding, f"Crawl-delay {robots.delay:g} s is longer than {job.max_crawl_delay:g} s")
    return _decided(finding, None)


def _decided(finding: Finding, no: str | None) -> Finding:
    """The finding with its answer: out of scope comes first, then `no`."""
    if not finding.in_scope:
        return finding
    return replace(finding, allowed=no is None, why=no or f"{finding.scope}, {finding.rule}")


def fetch(url: str, policy: AddressPolicy, timeout: float, agent: str, limit: int = LIMIT) -> tuple[int, bytes]:
    """(status, at most `limit` bytes of body) of a robots.txt or a page, behind at most five redirects.

    Every address is checked when it is connected to. Each answer must be there after `timeout` seconds in all, however
    slowly it drips. More redirects count as 404, as RFC 9309 says. Raises OSError or HTTPException.
    """
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            break
        with _Connection(url, policy, timeout) as connection:
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": agent, "Accept-Encoding": "identity", "Connection": "close"}
            connection.request("GET", path or "/", headers=headers)
            response = connection.getresponse()
            location = response.getheader("Location")
            if not (300 <= response.status < 400 and location):
                return response.status, _read(response, limit, connection)
        url = urljoin(url, location)
    return 404, b""


def _read(response: http.client.HTTPResponse, limit: int, connection: _Connection) -> bytes:
    body = response.read(limit)
    if connection.late:
        raise TimeoutError("timed out")
    return body


class _Connection(http.client.HTTPConnection):
    """A connection to an address that the policy allows; the name is looked up once, and what was checked is used."""

    def __init__(self, url: str, policy: AddressPolicy, timeout: float) -> None:
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        super().__init__(parts.hostname or "", parts.port or (443 if self._tls else 80), timeout=timeout)
        self._policy = policy
        self.late = False
        self._clock = threading.Timer(timeout, self._hang_up)
        self._clock.daemon = True

    def _hang_up(self) -> None:
        self.late = True
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def connect(self) -> None:
        self.sock = _connected(self._policy.resolve(self.host, self.port), self.port, float(self.timeout or SECONDS))
        if self._tls:
            context = ssl.create_default_context()
            context.check_hostname = False  # like Scrapy's default: a crawl also reads sites whose certificate ran out
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def __enter__(self) -> _Connection:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.cancel()
        self.close()


def _connected(addresses: Sequence[tuple[int, str]], port: int, timeout: float) -> socket.socket:
    for family, address in addresses:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
        except OSError:
            connection.close()
            if address == addresses[-1][1]:
                raise
        else:
            return connection
    raise OSError("no address")
