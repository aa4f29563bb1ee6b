"""Which network addresses a crawl may connect to: public ones, and what its source names.

The check is made on the address that is connected to, after the name was looked up, so that neither a name that leads
inside nor an answer that changes between two look-ups (DNS rebinding) gets past it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIXTO4 = ipaddress.ip_network("2002::/16")
_COMPATIBLE = ipaddress.ip_network("::/96")


class PrivateAddress(OSError):
    """A name leads to an address that the source does not allow."""


class AddressPolicy:
    """Public addresses, and those that `allow` names.

    An entry of `allow` is a host as it stands in a URL (`localhost`, `10.0.0.5`: whatever that very name leads to), or
    a network (`10.0.0.0/8`: whatever name leads into it). Raises ValueError for a network that is none.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        entries = [entry.strip().lower() for entry in allow]
        self._names = frozenset(entry.strip("[]").rstrip(".") for entry in entries if "/" not in entry)
        self._networks = tuple(ipaddress.ip_network(entry, strict=False) for entry in entries if "/" in entry)

    def refusal(self, host: str, address: str) -> str | None:
        """Why `host` (as the URL writes it) may not be reached at `address`; None if it may."""
        if host.lower().strip("[]").rstrip(".") in self._names:
            return None
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return f"{address} is no address"
        for inner in _meant(found):
            kind = _kind(inner)
            if kind and not any(inner in network for network in self._networks):
                return f"{host} leads to {address}, which is {kind}"
        return None

    def refusal_of_literal(self, host: str) -> str | None:
        """The same for a host that is written as an address; None for a name."""
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return None
        return self.refusal(host, host.strip("[]"))

    def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """(family, address) of those addresses of a host that may be connected to.

        Raises `PrivateAddress` if it has none but others, OSError if it cannot be looked up.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        refusals = {str(item[4][0]): self.refusal(host, str(item[4][0])) for item in found}
        allowed = [(int(item[0]), str(item[4][0])) for item in found if refusals[str(item[4][0])] is None]
        if not allowed:
            raise PrivateAddress(next(filter(None, refusals.values()), f"{host} has no address"))
        return allowed


def _meant(address: Address) -> list[Address]:
    """The address, and the IPv4 address that an IPv6 one carries inside it."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner: list[Address] = [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address in _COMPATIBLE and int(address) > 1:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _SIXTO4:
        inner.append(ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF))
    return inner


def _kind(address: Address) -> str | None:
    """What kind of inside an address is; None for a public one."""
    if address.is_loopback:
        return "loopback"
    if address.is_unspecified:
        return "unspecified"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address.is_private:
        return "private"
    if address.is_reserved or not address.is_global:
        return "not public"
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return "site-local"
    return None
