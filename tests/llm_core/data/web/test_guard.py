"""No way inside: which addresses are refused, and that the check is made on what is connected to."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import Any

import pytest
from scrapy.settings import Settings
from twisted.internet.address import IPv4Address

from llm_core.contract import BadInput
from llm_core.data.web.addresses import AddressPolicy, PrivateAddress
from llm_core.data.web.check import check
from llm_core.data.web.guard import ALLOW_PRIVATE, GuardedResolver
from llm_core.data.web.job import CrawlJob

INSIDE = [
    "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "0.1.2.3", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fd00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
    "::7f00:1", "no address",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", INSIDE)
def test_inner_addresses_are_refused(address: str) -> None:
    assert AddressPolicy().refusal("name.example", address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_public_addresses_are_not(address: str) -> None:
    assert AddressPolicy().refusal("name.example", address) is None


def test_what_a_source_allows_by_name_and_by_network() -> None:
    policy = AddressPolicy(["Wiki.example", "127.0.0.1", "10.1.0.0/16", "fd00::/8"])
    assert policy.refusal("wiki.example", "192.168.0.1") is None
    assert policy.refusal("127.0.0.1", "127.0.0.1") is None
    assert policy.refusal("any.example", "10.1.2.3") is None
    assert policy.refusal("any.example", "::ffff:10.1.2.3") is None
    assert policy.refusal("any.example", "fd00::5") is None
    assert policy.refusal("any.example", "127.0.0.1"), "an address is allowed only where the URL names it"
    assert policy.refusal("any.example", "10.2.0.1")
    with pytest.raises(ValueError, match="does not appear to be"):
        AddressPolicy(["10.0.0.0/nonsense"])


class Lookups:
    """A resolver below the guard that answers differently each time, as DNS rebinding does."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any) -> Any:
        receiver.resolutionBegan(None)
        for address in self.answers.pop(0):
            receiver.addressResolved(IPv4Address("TCP", address, portNumber))
        receiver.resolutionComplete()


class Receiver:
    """What Twisted's endpoint is to a resolver: it connects to these addresses and to no others."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.complete = False

    def resolutionBegan(self, resolution: Any) -> None: ...

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address.host)

    def resolutionComplete(self) -> None:
        self.complete = True


def test_the_endpoint_gets_only_addresses_that_are_allowed_each_time_it_asks() -> None:
    class Reactor:
        nameResolver = Lookups(["93.184.216.34"], ["10.0.0.1"], ["127.0.0.1", "8.8.8.8"])

    class FakeCrawler:
        settings = Settings({ALLOW_PRIVATE: [], "DNSCACHE_ENABLED": False})

    resolver = GuardedResolver.from_crawler(FakeCrawler(), Reactor())  # type: ignore[arg-type]
    seen = []
    for _ in range(3):
        receiver = Receiver()
        resolver.resolveHostName(receiver, "rebinding.example", 80)
        assert receiver.complete
        seen.append(receiver.addresses)
    assert seen == [["93.184.216.34"], [], ["8.8.8.8"]]
    assert resolver.refused == {"rebinding.example": "rebinding.example leads to 10.0.0.1, which is private"}


def test_check_says_what_would_happen(site: Any, job: CrawlJob) -> None:
    site.answers["/robots.txt"] = (301, {"Location": "/rules"}, b"")
    site.answers["/rules"] = (200, {}, b"User-agent: *\nDisallow: /closed\nCrawl-delay: 7\nSitemap: http://x.org/s")
    found = check(f"{site.url}/a/../b?utm_source=x#top", job)
    assert (found.allowed, found.canonical, found.rule) == (True, f"{site.url}/b", "no rule matches")
    assert (found.delay, found.sitemaps, found.robots) == (7.0, ("http://x.org/s",), "answers 200")
    closed = check(f"{site.url}/closed/x", job)
    assert (closed.allowed, closed.why) == (False, "robots.txt forbids it: line 2: Disallow: /closed")
    denied = check(f"{site.url}/b", replace(job, deny=("/b",)))
    assert (denied.allowed, denied.in_scope, denied.why) == (False, False, "deny: '/b' matches")
    slow = check(f"{site.url}/b", replace(job, max_crawl_delay=1.0))
    assert (slow.allowed, slow.why) == (False, "Crawl-delay 7 s is longer than 1 s")
    assert set(site.asked) == {"/robots.txt", "/rules"}, "robots.txt alone is asked for"
    site.answers["/robots.txt"] = (503, {}, b"")
    assert check(f"{site.url}/b", job).why == "robots.txt forbids it: robots.txt answers 503"


def test_check_goes_nowhere_inside(site: Any, job: CrawlJob) -> None:
    inside = check(f"{site.url}/", replace(job, allow_private=()))
    assert (inside.allowed, inside.public) == (False, False)
    assert inside.why == "127.0.0.1 leads to 127.0.0.1, which is loopback"
    assert site.asked.total() == 0
    site.answers["/robots.txt"] = (302, {"Location": f"http://localhost:{site.port}/secret"}, b"")
    site.answers["/secret"] = (200, {}, b"")
    around = check(f"{site.url}/", job)
    assert not around.allowed
    assert "localhost leads to" in around.why
    assert site.asked["/secret"] == 0


def test_check_does_not_wait_for_an_answer_that_drips(site: Any, job: CrawlJob) -> None:
    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b"#")
            handler.wfile.flush()
            time.sleep(0.1)

    site.scripts["/robots.txt"] = drip
    began = time.monotonic()
    assert "cannot be had" in check(f"{site.url}/", replace(job, timeout=0.5)).why
    assert time.monotonic() - began < 8, "the whole answer would take ten seconds"


def test_check_of_what_cannot_be_asked() -> None:
    with pytest.raises(BadInput, match="not an http or https URL"):
        check("ftp://example.org/")
    nowhere = check("http://nowhere.invalid/")
    assert (nowhere.allowed, nowhere.why.partition(" (")[0]) == (False, "nowhere.invalid cannot be resolved")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        refused = check(url, CrawlJob(store="", start=(url,), contact="x", allow_private=("127.0.0.1",)))
    assert refused.why == "robots.txt forbids it: robots.txt cannot be had: Connection refused"


def test_resolve_names_what_it_refuses() -> None:
    with pytest.raises(PrivateAddress, match="loopback"):
        AddressPolicy().resolve("localhost", 80)
    assert AddressPolicy(["localhost"]).resolve("localhost", 80)
