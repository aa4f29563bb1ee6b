"""The door of the crawl's process: names resolve only to addresses the policy allows, headers have a size.

Scrapy connects through Twisted's `HostnameEndpoint`, which asks the reactor's resolver at the moment of connecting and
uses exactly what it answers, also for addresses written as such and after every redirect. So a resolver that leaves
out what is forbidden is a check at the connection: no second look-up can slip between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scrapy.core.downloader.handlers.http11 import (
    HTTP11DownloadHandler,
    _LenientHTTP11ClientFactory,
    _LenientHTTP11ClientProtocol,
)
from scrapy.crawler import Crawler
from scrapy.resolver import CachingHostnameResolver
from twisted.internet.interfaces import IResolutionReceiver
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from llm_core.data.web.addresses import AddressPolicy

MAX_HEADER_BYTES = 65_536
"""Bytes of an answer's headers, all lines together."""
ALLOW_PRIVATE = "GROUNDUP_ALLOW_PRIVATE"
"""The Scrapy setting with the job's allowed private hosts and networks."""


class HeaderTooLarge(Exception):
    """An answer's headers go on beyond `MAX_HEADER_BYTES`."""


def ascii_host(host: str) -> str:
    """A host name as URLs have it: in lower case, an international one in its ASCII form."""
    try:
        return host.lower().encode("idna").decode()
    except UnicodeError:
        return host.lower()


@implementer(IResolutionReceiver)
class _Sieve:
    """Passes on the addresses that the policy allows, and notes the last one it refused."""

    def __init__(self, receiver: Any, host: str, resolver: GuardedResolver) -> None:
        self._receiver, self._host, self._resolver = receiver, host, resolver
        self._passed = False
        self._refused: str | None = None

    def resolutionBegan(self, resolution: Any) -> None:
        self._receiver.resolutionBegan(resolution)

    def addressResolved(self, address: Any) -> None:
        why = self._resolver.policy.refusal(self._host, address.host)
        if why is None:
            self._passed = True
            self._receiver.addressResolved(address)
        else:
            self._refused = why

    def resolutionComplete(self) -> None:
        if self._refused and not self._passed:
            self._resolver.refused[ascii_host(self._host)] = self._refused
        self._receiver.resolutionComplete()


class GuardedResolver(CachingHostnameResolver):  # type: ignore[misc]
    """Scrapy's caching resolver behind an `AddressPolicy`. `refused` says why a host got no address."""

    policy: AddressPolicy
    refused: dict[str, str]

    @classmethod
    def from_crawler(cls, crawler: Crawler, reactor: Any) -> GuardedResolver:
        resolver: GuardedResolver = super().from_crawler(crawler, reactor)
        resolver.policy = AddressPolicy(crawler.settings.getlist(ALLOW_PRIVATE))
        resolver.refused = {}
        return resolver

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        sieve = _Sieve(resolutionReceiver, hostName, self)
        return super().resolveHostName(sieve, hostName, portNumber, addressTypes, transportSemantics)


class _CappedProtocol(_LenientHTTP11ClientProtocol):  # type: ignore[misc]
    """A connection that gives up when the headers of an answer do not end."""

    _header_bytes = 0

    def request(self, request: Any) -> Any:
        deferred = super().request(request)
        self._header_bytes = 0
        if self._parser is not None:
            self._parser.MAX_LENGTH = 2 * MAX_HEADER_BYTES  # one count for all lines, here, instead of one a line
        return deferred

    def dataReceived(self, data: bytes) -> None:
        parser = self._parser
        if parser is None or parser.state not in ("STATUS", "HEADER"):
            super().dataReceived(data)
            return
        end = data.find(b"\n\r\n")
        if self._header_bytes + end <= MAX_HEADER_BYTES:
            super().dataReceived(data)
            self._header_bytes += len(data)
            if self._parser is not parser or parser.state != "HEADER" or self._header_bytes <= MAX_HEADER_BYTES:
                return
        self._giveUp(Failure(HeaderTooLarge(f"more than {MAX_HEADER_BYTES:,} bytes of headers")))


class _CappedFactory(_LenientHTTP11ClientFactory):  # type: ignore[misc]
    def buildProtocol(self, addr: Any) -> _CappedProtocol:  # noqa: ARG002
        return _CappedProtocol(self._quiescentCallback)


class GuardedHandler(HTTP11DownloadHandler):  # type: ignore[misc]
    """Scrapy's download handler for http and https with connections that cap the headers."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self._pool._factory = _CappedFactory
