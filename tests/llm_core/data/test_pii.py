"""Personal data is masked; what only looks like it is not."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core.contract import BadInput
from llm_core.data.pii import MaskOptions, mask

ALL = MaskOptions()


def masked(text: str, options: MaskOptions = ALL) -> str:
    return mask(text, options)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+news@mail.acme-corp.co.uk, please", "write to [EMAIL], please"),
        ("<a.b@c-d.de>; x_y@z.io.", "<[EMAIL]>; [EMAIL]."),
        ("mailto:who@where.fr", "mailto:[EMAIL]"),
        ("from 93.184.216.34, and (2a00:1450:4001:81b::200e)", "from [IP], and ([IP])"),
        ("http://93.184.216.34/x and 93.184.216.34:80", "http://[IP]/x and [IP]:80"),
        ("2606:2800:220:1:248:1893:25c8:1946 is up", "[IP] is up"),
        ("call +44 20 7946 0958 or +1-202-456-1111", "call [PHONE] or [PHONE]"),
        ("phone: (202) 456-1111. Fax 202-456-1414", "phone: [PHONE]. Fax [PHONE]"),
        ("0049 30 901820 in Berlin", "[PHONE] in Berlin"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [IBAN]."),
        ("GB82WEST12345698765432 and NO9386011117947", "[IBAN] and [IBAN]"),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004; 378282246310005", "card [CARD], [CARD]; [CARD]"),
        ("Ärger: jürgen@müller.de → jane@acme.org ✓", "Ärger: jürgen@müller.de → [EMAIL] ✓"),
    ],
)  # fmt: skip
def test_what_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, a@sub.example.org, root@localhost, b@host.invalid, c@service.test",
        "@decorator, x@y, a @ b.com, matrix @ vector.T, git@, @handle.name",
        "192.168.0.1, 10.255.255.254, 127.0.0.1, 172.16.254.3, 192.0.2.235, 169.254.100.100, fe80::1, 2001:db8::1",
        "version 12.34.56.78, v10.20.30.400, build 110.120.130.140, 1.2.3.4, 43.6.5.4. WHILE, 300.400.500.600",
        "128.66.0.0/16 and package-4.15.120.140-3",
        "std::vector, a::b, 2001::x, 12:30:45, 2010:11:12, abc::def, Foo::Bar::2000::baz",
        "2021-03-04 05:06:07, 04/05/2021, 1990-1995, 2010.11.12, 20211231235959, 1914-1918 1939-1945",
        "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISSN 2049-3630, doi:10.1000/182.2021.1234567",
        "2.5066282746310002, 3.14159265358979, 0.5772156649, 1,234,567,890, 5066282746, 12 345 678.90",
        "4111 1111 1111 1112, 1234 5678 9012 3456, 4111111111111111111111, 0x4111111111111111, 4.1111111111111111",
        "DE89 3704 0044 0532 0130 01, XX89370400440532013000, GB82 WEST 1234",
        "1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597, 12 202 456 1111",
        "#1234567890, id=5555555555, x[1234567890], 10 000 000 000, 100 200 300 400 500 600",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    assert mask(text, ALL) == (text, {})


def test_kinds_are_counted_and_can_be_switched_off() -> None:
    text = "a@b.de c@d.de 93.184.216.34 +44 20 7946 0958 GB82WEST12345698765432 4111 1111 1111 1111"
    assert mask(text, ALL)[1] == {"email": 2, "ip": 1, "phone": 1, "iban": 1, "card": 1}
    for kind in ("email", "ip", "phone", "iban", "card"):
        counts = mask(text, MaskOptions(**{kind: False}))[1]
        assert kind not in counts
        assert len(counts) == 4
    nothing = MaskOptions(email=False, ip=False, phone=False, iban=False, card=False)
    assert mask(text, nothing) == (text, {})
    assert masked("030 901820 12", MaskOptions(phone_regions=("DE",))) != "030 901820 12"
    assert masked("(202) 456-1111", MaskOptions(phone_regions=())) == "(202) 456-1111"
    with pytest.raises(BadInput, match="phone_regions: 'UK' is no ISO 3166 code"):
        MaskOptions(phone_regions=("DE", "UK"))


def test_example_numbers_of_every_country_are_found() -> None:
    """The numbering plans' own examples, in international form, in a sentence."""
    missed = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number(region)
        written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
        if masked(f"Call {written} today.") != "Call [PHONE] today.":
            missed.append(written)
    assert len(missed) <= 5, missed  # the shortest numbers of small islands


def test_check_digits_decide() -> None:
    """Of random digits one in ten has the Luhn digit, one in 97 the IBAN's: about that many are masked, no more."""
    rng = random.Random(0)
    cards = [f"4{rng.randrange(10**15):015d}" for _ in range(1_000)]
    assert 60 <= sum(masked(card) != card for card in cards) <= 140
    accounts = [f"DE{rng.randrange(10**20):020d}" for _ in range(2_000)]
    assert 5 <= sum(masked(account) != account for account in accounts) <= 45


def test_a_number_after_a_date_or_after_others_is_found() -> None:
    assert masked("2021-03-04 202-456-1111 x 12 34 (202) 456-1111") == "2021-03-04 [PHONE] x 12 34 [PHONE]"
    assert masked("tel 202-456-1111 202-456-1414, 12 +44 20 7946 0958") == "tel [PHONE] [PHONE], 12 [PHONE]"
    table = "12 34 56 78 90\n" * 20_000
    assert mask(f"202-456-1111 {table}", ALL) == (f"[PHONE] {table}", {"phone": 1})


@given(st.text(alphabet="0123456789 .-+()@:abcDE/,#x\n", max_size=120))
@settings(max_examples=300, deadline=None)
def test_masking_is_idempotent(text: str) -> None:
    once, counts = mask(text, ALL)
    assert mask(once, ALL) == (once, {})
    assert (once == text) == (not counts)


def test_articles_of_an_encyclopedia_keep_their_text(shared_data: Path) -> None:
    """10.8 MB of Wikipedia: years, coordinates, scores, populations; not one of them is anybody's number."""
    text = (shared_data / "wikitext2" / "train.txt").read_text()
    plain = text.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
    for document in (text, plain):
        assert mask(document, ALL)[1] == {}


def test_manuals_keep_their_numbers(shared_data: Path) -> None:
    """600 documents about PostgreSQL, Git, Python: few masks, and nearly all of them addresses of people."""
    counts: dict[str, int] = {}
    with gzip.open(shared_data / "filters" / "datatrove_decisions.jsonl.gz") as file:
        for line in file:
            for kind, count in mask(json.loads(line)["text"], ALL)[1].items():
                counts[kind] = counts.get(kind, 0) + count
    assert counts.get("email", 0) < 60
    assert counts.get("ip", 0) + counts.get("phone", 0) < 25
    assert not counts.keys() & {"iban", "card"}
