from __future__ import annotations

import pytest

from ingest.errors import EgressDenied
from ingest.sections import Egress
from workers.egress import Policy, Trail, is_private, parse_address

PUBLIC, PRIVATE = "93.184.215.14", "10.1.2.3"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"), ("2130706433", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("127.1", "127.0.0.1"), ("[::ffff:10.0.0.1]", "10.0.0.1"), ("::ffff:a9fe:a9fe", "169.254.169.254"),
        ("64:ff9b::7f00:1", "127.0.0.1"), ("2002:7f00:1::", "127.0.0.1"), ("fe80::1%eth0", "fe80::1"),
        ("::127.0.0.1", "127.0.0.1"), ("::ffff:0:7f00:1", "127.0.0.1"), ("[::ffff:7f00:1]", "127.0.0.1"),
        ("017700000001", "127.0.0.1"), ("0x7f.0x1", "127.0.0.1"), ("0", "0.0.0.0"), ("::", "::"),
        ("169.254.43518", "169.254.169.254"), ("0xA9FEA9FE", "169.254.169.254"),
        ("[::1]", "::1"),
    ],
)  # fmt: skip
def test_every_spelling_of_an_address(text: str, address: str) -> None:
    assert str(parse_address(text)) == address


@pytest.mark.parametrize("text", ["example.com", "cafe", "1.2.3.4.5", "", "face.b00c", "a.1"])
def test_names_are_no_addresses(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("text", "private"),
    [
        (PUBLIC, False), ("2606:2800:220:1::1", False), ("10.0.0.1", True), ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("127.0.0.1", True), ("::1", True), ("fc00::1", True), ("100.64.0.1", True), ("0.0.0.0", True),
        ("169.254.1.1", True), ("fec0::1", True), ("64:ff9b:1::7f00:1", True), ("224.0.0.1", True), ("ff02::1", True),
        ("::127.0.0.1", True), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", True), ("255.255.255.255", True), ("::", True),
        ("::93.184.215.14", False),
    ],
)  # fmt: skip
def test_private(text: str, private: bool) -> None:
    address = parse_address(text)
    assert address is not None
    assert is_private(address) is private


def allowed(text: str, *, host: str = "data.corp", from_public: bool = False, **egress: object) -> bool:
    address = parse_address(text)
    assert address is not None
    policy = Policy(Egress(**egress))  # type: ignore[arg-type]  # the tests know its fields
    try:
        policy.check("http://data.corp/a", host, address, from_public=from_public)
    except EgressDenied:
        return False
    return True


@pytest.mark.parametrize("text", [PRIVATE, "169.254.169.254"])
def test_refusal_says_which_address_and_which_setting(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    with pytest.raises(EgressDenied) as denied:
        Policy(Egress(strict=True)).check("http://data.corp/a", "data.corp", address, from_public=False)
    assert text in denied.value.reason
    assert "[egress] allow" in denied.value.reason


@pytest.mark.parametrize("from_public", [False, True])
def test_public_addresses_always(from_public: bool) -> None:
    assert allowed(PUBLIC, from_public=from_public, strict=True)


def test_private_addresses_by_default() -> None:
    assert allowed(PRIVATE)
    assert not allowed(PRIVATE, from_public=True)
    assert not allowed(PRIVATE, strict=True)


@pytest.mark.parametrize("entry", ["data.corp", "*.corp", "DATA.CORP.", "10.0.0.0/8", "10.1.2.3", "10.1.2.3/8"])
def test_named_private_addresses(entry: str) -> None:
    assert allowed(PRIVATE, from_public=True, strict=True, allow=(entry,))


@pytest.mark.parametrize("entry", ["corp", "data", "other.corp", "11.0.0.0/8", "::/0"])
def test_other_names_do_not_help(entry: str) -> None:
    assert not allowed(PRIVATE, from_public=True, allow=(entry,))


@pytest.mark.parametrize("text", ["127.0.0.1.", "１２７.0.0.1", "localhost", "127.0.0.1.nip.example"])
def test_what_only_a_resolver_makes_an_address_is_judged_when_connected(text: str) -> None:
    trail = Trail(Policy(Egress(strict=True)), "http://a/")
    trail.approach(text, proxied=False)
    with pytest.raises(EgressDenied):
        _visit(trail, "127.0.0.1")


METADATA = ["169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", "fd00:ec2::23", "fd00:42::42",
            "100.100.100.200", "168.63.129.16"]  # fmt: skip


@pytest.mark.parametrize("address", METADATA)
def test_metadata_only_by_its_own_address(address: str) -> None:
    assert not allowed(address)
    assert not allowed(address, allow=("*", "0.0.0.0/0", "::/0", "data.corp"))
    assert allowed(address, allow=(address,))


def test_trail_remembers_that_it_was_public() -> None:
    trail = Trail(Policy(Egress()), "http://a/")
    for text in (PRIVATE, PRIVATE, PUBLIC, PUBLIC):
        _visit(trail, text)
        trail.redirected()
    with pytest.raises(EgressDenied, match=r"public server redirects"):
        _visit(trail, PRIVATE)


def test_trail_from_private_to_private() -> None:
    trail = Trail(Policy(Egress()), "http://a/")
    _visit(trail, PRIVATE)
    trail.redirected()
    _visit(trail, "127.0.0.1")


def test_name_behind_a_proxy_counts_as_public() -> None:
    trail = Trail(Policy(Egress(strict=True)), "http://a/")
    trail.approach("data.example", proxied=True)
    trail.redirected()
    with pytest.raises(EgressDenied):
        trail.approach("127.0.0.1", proxied=True)


def test_literal_address_is_judged_before_it_is_connected_to() -> None:
    with pytest.raises(EgressDenied):
        Trail(Policy(Egress()), "http://a/").approach("169.254.169.254", proxied=False)


def _visit(trail: Trail, text: str) -> None:
    address = parse_address(text)
    assert address is not None
    trail.visit("host", address)
