"""Personal data: e-mail and public IP addresses, telephone, bank account and card numbers become fixed placeholders.

A quick search for digits close together finds the few places worth a closer look. Each kind then has a check that
keeps false alarms low: reserved domains, private address ranges, check digits, issuers, and for telephone numbers the
numbering plans of `phonenumbers`. The placeholders match none of the patterns: what is masked stays as it is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import numpy as np
import phonenumbers
from phonenumbers import Leniency, PhoneNumberMatcher

from llm_core.contract import BadInput

_AT = re.compile(r"@(?=[A-Za-z0-9-]{1,63}\.)([A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?)")
_LOCAL = re.compile(r"[A-Za-z0-9_%+][A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{0,63}\Z")
_TOP_LEVEL = re.compile(r"(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]+)\Z")
RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|org|net|edu)|example|test|invalid|localhost|local)\Z", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.:-])(?<!\w/)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|/\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:/])")
_VERSION = re.compile(
    r"(?:version|release|ver|v|rev|revision|build|firmware|driver|patch|section|sec|chapter|clause|rfc|§|no|number)"
    r"s?[.:]?\s*\Z",
    re.IGNORECASE,
)
_GROUPS = re.compile(r"(?<![\w.,+@#=/-])\d(?:[ -]?\d){12,18}(?![\w@-]|[.,]\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in (
        pair.split(":")
        for pair in (
            "15:NO", "16:BE", "18:DK FI FK FO GL NL SD", "19:MK SI", "20:AT BA EE KZ LT LU MN XK", "21:CH HR LI LV",
            "22:BG BH CR DE GB GE IE ME RS VA", "23:AE GI IL IQ OM SO TL", "24:AD CZ ES MD PK RO SA SE SK TN VG",
            "25:LY PT ST", "26:IS TR", "27:BI DJ FR GR IT MC MR SM", "28:AL AZ BY CY DO GT HU LB NI PL SV",
            "29:BR EG PS QA UA", "30:JO KW MU", "31:MT SC", "32:LC", "33:RU",
        )
    )
    for country in countries.split()
}  # fmt: skip
"""ISO 13616: how long an account number is in each country."""
_CARDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|(?:6011|65\d\d|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
"""First digits and lengths by issuer: Visa, Mastercard (both ranges), American Express, Diners, Discover, JCB,
UnionPay."""
_PHONE = re.compile(r"(?<![\w+.,@#=/-])(?:\+|00|\(?0?[1-9])(?:[ ()./-]{0,3}\d){6,14}(?![\w@-]|[.,]\d)")
_NUMBER_BEFORE = re.compile(r"\d[ \t]+\Z")
_FIRST_GROUP = re.compile(r"\D*\d+")
_DATE = re.compile(r"(?:1[5-9]|20)\d\d([-/. ])[01]?\d\1[0-3]?\d(?!\d)|[0-3]?\d([-/.])[0-3]?\d\2(?:1[5-9]|20)\d\d(?!\d)")
MOST_MISSES = 500
"""Candidates in a row that are no telephone numbers before the search in a text ends: it is a log, or a table."""
IPV4_DIGITS = 7
"""Fewest digits of an IPv4 address: of those with fewer, nearly all are numbers of sections and versions."""
VERSION_BEFORE = 12
"""Characters before an address that are looked at for words such as "version"."""
_DENSE, _SPREAD, _MARGIN = 7, 26, 48
"""Every kind but e-mail has 7 digits within 26 characters; the patterns look only there, and 48 characters around."""


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """Which kinds are masked; `phone_regions`: countries whose national way of writing numbers is known."""

    email: bool = True
    ip: bool = True
    phone: bool = True
    iban: bool = True
    card: bool = True
    phone_regions: tuple[str, ...] = ("US",)

    def __post_init__(self) -> None:
        """Raises `BadInput` for a region that has no numbering plan."""
        if unknown := sorted(set(self.phone_regions) - phonenumbers.SUPPORTED_REGIONS):
            raise BadInput(f"clean: personal_data.phone_regions: {unknown[0]!r} is no ISO 3166 code of a country")


Span = tuple[int, int]


def mask(text: str, options: MaskOptions) -> tuple[str, dict[str, int]]:
    """(the text with placeholders such as [EMAIL], how many of each kind). `mask` of the result changes nothing."""
    found: list[tuple[int, int, str]] = []
    if options.email and "@" in text:
        found += [(*span, "email") for span in _emails(text)]
    if options.ip and "::" in text:
        found += [(*span, "ip") for window in _double_colons(text) for span in _ipv6(text, *window)]
    windows = _dense(text)
    for window in windows:
        if options.iban:
            found += [(*span, "iban") for span in _ibans(text, *window)]
        if options.card:
            found += [(*span, "card") for span in _cards(text, *window)]
        if options.ip:
            found += [(*span, "ip") for find in (_ipv4, _ipv6) for span in find(text, *window)]
    if options.phone and windows:
        taken = sorted((start, end) for start, end, _ in found)
        found += [(*span, "phone") for span in _phones(text, windows, taken, options.phone_regions)]
    return _replaced(text, found) if found else (text, {})


def _dense(text: str) -> list[Span]:
    """Windows of the text with enough digits close together for any number that is looked for."""
    data = np.frombuffer(text.encode("latin-1", "replace"), np.uint8)  # a byte for each character
    digits = np.flatnonzero((data - np.uint8(ord("0"))) < 10)
    if len(digits) < _DENSE:
        return []
    close = np.flatnonzero(digits[_DENSE - 1 :] - digits[: 1 - _DENSE] <= _SPREAD)
    if not len(close):
        return []
    starts, ends = digits[close] - _MARGIN, digits[close + _DENSE - 1] + _MARGIN
    first = np.flatnonzero(np.concatenate([[True], starts[1:] > ends[:-1]]))
    last = np.append(first[1:], len(starts)) - 1
    return [(max(int(starts[i]), 0), int(ends[j])) for i, j in zip(first, last, strict=True)]


def _double_colons(text: str) -> Iterator[Span]:
    place = text.find("::")
    while place >= 0:
        yield max(place - 40, 0), place + 40
        place = text.find("::", place + 40)


def _replaced(text: str, found: list[tuple[int, int, str]]) -> tuple[str, dict[str, int]]:
    """Of overlapping finds the one that begins first counts; of those that begin together, the one found first."""
    counts: dict[str, int] = {}
    parts, end = [], 0
    for start, stop, kind in sorted(found, key=lambda item: item[0]):
        if start >= end:
            parts += [text[end:start], f"[{kind.upper()}]"]
            counts[kind] = counts.get(kind, 0) + 1
            end = stop
    return "".join([*parts, text[end:]]), counts


def _emails(text: str) -> Iterator[Span]:
    last = 0
    for found in _AT.finditer(text):
        local = _LOCAL.search(text, max(last, found.start() - 64), found.start())
        domain = found[1]
        if local is None or "." not in domain or not _TOP_LEVEL.search(domain.rpartition(".")[2]) or ".." in domain:
            continue
        in_path = text[local.start() - 1 : local.start()] == "/"  # of a URL: a message's id, not a person's address
        if not in_path and not RESERVED.search(domain):
            yield local.start(), found.end()
            last = found.end()


def _ipv4(text: str, start: int, end: int) -> Iterator[Span]:
    for found in _IPV4.finditer(text, start, end):
        enough = len(found[0]) - 3 >= IPV4_DIGITS
        if enough and not _VERSION.search(text, max(0, found.start() - VERSION_BEFORE), found.start()):
            yield from _public(found, IPv4Address)


def _ipv6(text: str, start: int, end: int) -> Iterator[Span]:
    for found in _IPV6.finditer(text, start, end):
        yield from _public(found, IPv6Address)


def _public(found: re.Match[str], kind: type[IPv4Address] | type[IPv6Address]) -> Iterator[Span]:
    try:
        if kind(found[0]).is_global:
            yield found.span()
    except AddressValueError:
        pass  # looked like an address


def _ibans(text: str, start: int, end: int) -> Iterator[Span]:
    for found in _IBAN.finditer(text, start, end):
        number = found[0].replace(" ", "")
        length = _IBAN_LENGTHS.get(number[:2], 0)
        if not length or len(number) < length:
            continue
        digits = "".join(str(int(character, 36)) for character in number[4:length] + number[:4])
        if int(digits) % 97 == 1:
            yield found.start(), found.start() + _end_of(found[0], length)


def _end_of(written: str, length: int) -> int:
    """Where the first `length` characters that are no spaces end."""
    places = [place for place, character in enumerate(written, 1) if character != " "]
    return places[length - 1]


def _cards(text: str, start: int, end: int) -> Iterator[Span]:
    for found in _GROUPS.finditer(text, start, end):
        digits = found[0].replace(" ", "").replace("-", "")
        if _CARDS.fullmatch(digits) and _luhn(digits) and len(set(digits)) > 1:
            yield found.span()


def _luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _phones(text: str, windows: list[Span], taken: list[Span], regions: tuple[str, ...]) -> Iterator[Span]:
    """Telephone numbers outside of what is taken. A text that is a table of other numbers is given up on."""
    misses = known = 0  # known: the end of the last date or telephone number
    for start, end in windows:
        place = start
        while misses < MOST_MISSES and (found := _PHONE.search(text, place, end)):
            first, number = found.start(), found[0]
            before = bisect_right(taken, (first, len(text))) - 1
            if before >= 0 and taken[before][1] > first:
                place = taken[before][1]
            elif date := _DATE.match(text, first):
                place = known = date.end()
            elif length := _in_plan(number, regions) if _stands_alone(text, first, known) else 0:
                yield first, first + length
                place = known = first + length
                misses = 0
            else:
                place = _FIRST_GROUP.match(text, first).end()  # type: ignore[union-attr]
                misses += 1


def _stands_alone(text: str, first: int, known: int) -> bool:
    """Whether the number that begins here is not one of a row of numbers, such as 377 610 987 1597."""
    after_number = _NUMBER_BEFORE.search(text, max(0, first - 8), first) is not None
    return not after_number or text[first] in "+(" or not text[known:first].strip()


def _in_plan(candidate: str, regions: tuple[str, ...]) -> int:
    """Length of the valid number of a numbering plan that the candidate begins with; 0 if it does not.

    A national number must be written in groups, as its country does: ten digits in a row may be anything.
    """
    if not candidate.startswith("+") and sum(map(str.isdigit, candidate)) < 8:
        return 0
    international = candidate.startswith(("+", "00"))
    written = f"+{candidate[2:]}" if candidate.startswith("00") else candidate
    leniency = Leniency.VALID if international else Leniency.STRICT_GROUPING
    for region in (None,) if international else regions:
        for match in PhoneNumberMatcher(written, region, leniency=leniency):
            if match.start == 0 and (international or not match.raw_string.isdigit()):
                return int(match.end) + len(candidate) - len(written)
    return 0
