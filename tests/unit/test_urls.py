"""Which URLs may be fetched: every known way to write or to name an address of the house is refused."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ItemError
from shared.settings import Fetching
from shared.storage.urls import Resolver, find_addresses, is_url, parse_url

RULES = Fetching(urls=True)
WITH_HTTP = Fetching(urls=True, http=True)

#: Other schemes; no host; user names; what parsers do not agree on; ports; numbers for addresses; IPv6; names.
REFUSED = [
    *("ftp://example.org/a", "file:///etc/passwd", "gopher://e.org/", "http://example.org/", "jar:https://e.org/"),
    *("https://", "https:///etc/passwd", "https:example.org", "//example.org", "https://?a", "https://#a"),
    *(
        "https://user@example.org/",
        "https://user:pass@example.org/",
        "https://example.org:@10.0.0.1/",
        "https://@a.org",
    ),
    *(
        "https://example.org\\@10.0.0.1/",
        "https://a.org/\\b",
        "https://a b/",
        "https://a.org/ b",
        "https://a\tb.org/",
        "https://a.org/\0",
    ),
    *("https://a.org/\r\nX: y", "https://a.org/\u202egnp", "https://a.org/\ud800", "https://exa\u00admple.org/\u200b"),
    *(
        "https://a.org:22/",
        "https://a.org:8080/",
        "https://a.org:99999/",
        "https://a.org:-1/",
        "https://a.org:4\uff143/",
    ),
    *("https://a.org:/", "https://a.org:443:443/", "https://a.org:0/", "https://a.org:0443443/"),
    *("https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://127.1/", "https://0177.0.0.1/"),
    *(
        "https://127.0.0.01/",
        "https://127.0.0.256/",
        "https://1.2.3.4.5/",
        "https://0/",
        "https://0x/",
        "https://a.0xa/",
    ),
    *(
        "https://%31%32%37.0.0.1/",
        "https://\u24db.1/",
        "https://\u2460\u2461\u2466.1/",
        "https://\uff11\uff12\uff17.1/",
    ),
    *("https://[::1", "https://::1/", "https://[::1%25lo]/", "https://[::ffff:127.0.0.1.1]/", "https://[v1.x]/"),
    *("https://-a.org/", "https://a-.org/", "https://a..org/", "https://.org/", "https://a*.org/", "https://a%2eorg/"),
    *("https://" + "a" * 64 + "/", "https://" + "a." * 127 + "aa/", "https://a.org/" + "x" * 4096),
]

#: This network, private, carrier's, loopback, link-local (with the metadata service), documentation, tests, multicast,
#: reserved; then the same in the clothes of IPv6, and IPv6's own.
NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 127.255.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1
    192.0.0.9 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1
    64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 2001::1 2002:7f00:1:: 2002:808:808:: :: ::1 100::1 2001:db8::1 3fff::1 5f00::1
    fc00::1 fd00:ec2::254 fe80::1 fe80::1%lo fec0::1 ff02::1 ff0e::1
"""


def refusal(url: str, rules: Fetching = RULES) -> str:
    with pytest.raises(ItemError) as caught:
        parse_url(url, rules)
    assert caught.value.error_code == "url_not_allowed"
    return caught.value.message


def answering(*addresses: str) -> Resolver:
    """A resolver that gives these addresses."""
    return lambda host, port: addresses


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("https://example.org/a.png", "https://example.org/a.png"),
        ("HTTPS://EXAMPLE.org:443/A?b=%20c#d", "https://example.org/A?b=%20c"),
        ("https://example.org", "https://example.org/"),
        ("https://example.org?x=1", "https://example.org/?x=1"),
        ("https://example.org./", "https://example.org/"),
        ("https://example.org:80/", "https://example.org:80/"),
        ("https://bücher.example/größe?q=ü", "https://xn--bcher-kva.example/gr%C3%B6%C3%9Fe?q=%C3%BC"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:0::1111]/", "https://[2606:4700::1111]/"),
        ("https://my_host.example/", "https://my_host.example/"),
    ],
)
def test_urls_are_understood(text: str, parsed: str) -> None:
    assert str(parse_url(text, RULES)) == parsed


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_not_plainly_a_public_url_is_refused(url: str) -> None:
    assert "not fetched" in refusal(url)


def test_nothing_is_fetched_unless_switched_on() -> None:
    assert "switched off" in refusal("https://example.org/", Fetching())


def test_plain_http_and_other_ports_are_for_the_operator_to_allow() -> None:
    rules = Fetching(urls=True, http=True, ports=[8080])
    assert parse_url("http://a.org:8080/x", rules).authority == "a.org:8080"
    assert "port 80" in refusal("http://a.org/", rules)


def test_messages_show_no_query() -> None:
    assert "secret" not in refusal("https://a.org:1/x?token=secret")


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    url = parse_url("https://name.example/", RULES)
    for found in ([address], ["8.8.8.8", address]):
        with pytest.raises(ItemError, match="not public") as caught:
            find_addresses(url, RULES, answering(*found))
        assert caught.value.error_code == "url_not_allowed"


@pytest.mark.parametrize(
    ("address", "connected"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("172.32.0.1", "172.32.0.1"),
        ("100.128.0.1", "100.128.0.1"),
        ("::ffff:8.8.8.8", "8.8.8.8"),
        ("2606:4700::1111", "2606:4700::1111"),
        ("64:ff9b::808:808", "64:ff9b::808:808"),
    ],
)
def test_public_addresses_pass(address: str, connected: str) -> None:
    url = parse_url("https://name.example/", RULES)
    assert list(map(str, find_addresses(url, RULES, answering(address)))) == [connected]


def test_networks_of_the_house_can_be_allowed() -> None:
    rules = Fetching(urls=True, networks=[IPv4Network("10.1.0.0/16"), IPv6Network("fd00::/8")])
    url = parse_url("https://name.example/", rules)
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert find_addresses(url, rules, answering(address))
    with pytest.raises(ItemError):
        find_addresses(url, rules, answering("10.2.0.1"))


def test_a_host_without_addresses_may_have_some_later() -> None:
    with pytest.raises(OSError, match="no address"):
        find_addresses(parse_url("https://name.example/", RULES), RULES, answering())


PIECES = [
    *(
        "https",
        "http",
        "://",
        ":",
        "/",
        "//",
        "\\",
        "@",
        "#",
        "?",
        "[",
        "]",
        "%",
        "%00",
        ".",
        "..",
        "0x7f",
        "127",
        "1",
        "-",
    ),
    *("localhost", "example.org", "::1", "::ffff:", "443", "8080", " ", "\t", "\n", "\0", "xn--"),
    *(
        "\u00fc",
        "\u00df",
        "\u2460",
        "\u3002",
        "\u200d",
        "\ud800",
    ),  # ü ß ①, an ideographic full stop, a joiner, half a pair
]


@given(
    st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=60)).map(
        lambda rest: "https://" + rest
    )
)
def test_whatever_is_sent_is_refused_or_means_the_same_to_everyone(text: str) -> None:
    assert is_url(text)
    try:
        url = parse_url(text, WITH_HTTP)
    except ItemError as error:
        if error.error_code == "url_not_allowed":
            return
        raise
    split = urlsplit(str(url))
    assert (split.scheme, split.hostname, split.username, split.password) == (url.scheme, url.host, None, None)
    assert str(url).isascii()
    assert str(url).isprintable()
    assert not set(" \\") & set(str(url))
    assert url.port in (80, 443)
    if url.host.replace(".", "").isdecimal() or ":" in url.host:
        assert str(ip_address(url.host)) == url.host
    assert parse_url(str(url), WITH_HTTP) == url


@given(st.ip_addresses())
def test_an_address_that_passes_is_global_and_hides_no_other(address: object) -> None:
    url = parse_url("https://name.example/", RULES)
    try:
        [found] = find_addresses(url, RULES, answering(str(address)))
    except ItemError:
        return
    if found in IPv6Network("64:ff9b::/96"):
        found = IPv4Address(int(found) % 2**32)  # where a translator leads
    assert found.is_global
    assert not found.is_multicast
    assert not found.is_reserved
    hidden = {getattr(found, way, None) for way in ("ipv4_mapped", "sixtofour", "teredo")}
    assert hidden == {None}
