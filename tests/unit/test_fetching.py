"""Fetching URLs from real servers on loopback, which lie, loiter, redirect and change their names' addresses."""

import ssl
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ItemError
from shared.settings import Fetching
from shared.storage import fetching
from shared.storage.fetching import REDIRECTS, UrlFetcher
from shared.storage.urls import Resolver
from shared.testing.web import Website, answer

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
LIMIT = 20_000
#: Stands for public addresses here; the rest of loopback stands for the house.
PUBLIC = "127.0.0.2"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """A site at a public address; there is no pause between tries."""
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    with Website(PUBLIC) as running:
        yield running


def fetcher(site: Website, resolver: Resolver = lambda host, port: [PUBLIC], **rules: Any) -> UrlFetcher:
    """Fetches from the site, over plain http too."""
    allowed: dict[str, Any] = {"urls": True, "http": True, "ports": [80, 443, site.port], "seconds": 10.0, **rules}
    return UrlFetcher(Fetching(networks=[IPv4Network(PUBLIC)], **allowed), LIMIT, resolver)


def fetch(site: Website, path: str = "/", **options: Any) -> bytes:
    return fetcher(site, **options).fetch(f"http://media.test:{site.port}{path}")


def refusal(site: Website, path: str = "/", **options: Any) -> tuple[str, str]:
    """Code and message."""
    with pytest.raises(ItemError) as caught:
        fetch(site, path, **options)
    return caught.value.error_code, caught.value.message


def test_bytes_come_as_they_are(site: Website) -> None:
    site.pages["/a.png?x=1"] = answer(PICTURE, Content_Type="text/html")
    assert fetch(site, "/a.png?x=1#part") == PICTURE
    [request] = site.asked
    assert f"Host: media.test:{site.port}\r\n" in request
    assert "Accept-Encoding: identity\r\n" in request


@pytest.mark.parametrize(
    "page",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%s\r\n" % (len(PICTURE), PICTURE)
        + b"0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + answer(PICTURE),
        answer(PICTURE, Content_Length=f"{len(PICTURE)}") + b"more than was said",
    ],
    ids=["until the end", "chunked", "continue", "more than said"],
)
def test_bodies_of_all_kinds_are_read(site: Website, page: bytes) -> None:
    site.pages["/"] = page
    assert fetch(site) == PICTURE


@pytest.fixture
def secure_site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """A site whose certificate is for media.test, and is trusted."""
    certificate = Path(__file__).parent / "certificates" / "media.test.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with Website(PUBLIC, tls=tls) as running:
        yield running


def test_certificates_are_those_of_the_name_not_of_the_address(secure_site: Website) -> None:
    secure_site.pages["/"] = answer(PICTURE)
    good = fetcher(secure_site, http=False)
    assert good.fetch(f"https://media.test:{secure_site.port}/") == PICTURE
    assert f"Host: media.test:{secure_site.port}\r\n" in secure_site.asked[0]
    for host in ("other.test", PUBLIC):
        with pytest.raises(ItemError, match="certificate is not valid") as caught:
            good.fetch(f"https://{host}:{secure_site.port}/")
        assert caught.value.error_code == "url_failed"
    assert len(secure_site.asked) == 1


def test_https_does_not_lead_to_http(secure_site: Website) -> None:
    secure_site.pages["/"] = answer(status="302 Found", Location=f"http://media.test:{secure_site.port}/plain")
    with pytest.raises(ItemError, match="redirects to plain http") as caught:
        fetcher(secure_site).fetch(f"https://media.test:{secure_site.port}/")
    assert caught.value.error_code == "url_not_allowed"
    assert len(secure_site.asked) == 1


def test_a_name_that_changes_its_address_is_asked_once(site: Website) -> None:
    """DNS rebinding: harmless when it is checked, an address of the house when it is connected to."""
    site.pages["/"] = answer(PICTURE)
    answers = [PUBLIC, "127.0.0.1"]
    with Website("127.0.0.1", site.port) as house:
        house.pages["/"] = answer(b"secret of the house")
        assert fetch(site, resolver=lambda host, port: [answers.pop(0)]) == PICTURE
        assert answers == ["127.0.0.1"]
        site.pages["/"] = answer(status="302 Found", Location="/again")
        answers = [PUBLIC, "127.0.0.1"]
        code, message = refusal(site, resolver=lambda host, port: [answers.pop(0)])
        assert (code, house.asked) == ("url_not_allowed", [])
        assert "not public" in message


def test_one_address_of_the_house_among_others_is_one_too_many(site: Website) -> None:
    site.pages["/"] = answer(PICTURE)
    code, _ = refusal(site, resolver=lambda host, port: [PUBLIC, "10.0.0.1"])
    assert (code, site.asked) == ("url_not_allowed", [])


def test_the_next_address_is_tried_where_one_takes_no_connection(site: Website) -> None:
    site.pages["/"] = answer(PICTURE)
    rules = Fetching(urls=True, http=True, ports=[site.port], networks=[IPv4Network("127.0.0.0/8")])
    both = UrlFetcher(rules, LIMIT, lambda host, port: ["127.0.0.3", PUBLIC])
    assert both.fetch(f"http://media.test:{site.port}/") == PICTURE


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed(site: Website, status: str) -> None:
    site.pages["/a/b"] = answer(status=status, Location="../gr\u00fcn")
    site.pages["/gr%C3%BCn"] = answer(PICTURE)
    assert fetch(site, "/a/b") == PICTURE


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("http://127.0.0.1/", "not public"),
        ("http://[::1]/", "not public"),
        ("http://[::ffff:127.0.0.1]/", "not public"),
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("//10.0.0.1/", "not public"),
        ("http://2130706433/", "usual notation"),
        ("file:///etc/passwd", "form"),
        ("ftp://media.test/", "only"),
        ("gopher://media.test:80/_x", "only"),
        ("http://user@media.test/", "form"),
        ("http://media.test:6379/", "port 6379"),
        ("http://[", "no URL"),
        ("http://medi\u2100.test/", "no URL"),
        ("http://media.test\\@127.0.0.1/", "backslashes"),
    ],
)
def test_redirects_are_checked_as_their_first_url_was(site: Website, location: str, word: str) -> None:
    site.pages["/"] = answer(status="302 Found", Location=location)

    def resolver(host: str, port: int) -> list[str]:
        return [PUBLIC if host == "media.test" else host]

    code, message = refusal(site, resolver=resolver)
    assert code == "url_not_allowed"
    assert word in message
    assert len(site.asked) == 1


def test_redirects_end(site: Website) -> None:
    site.pages["/"] = answer(status="302 Found", Location="/")
    code, message = refusal(site)
    assert (code, len(site.asked)) == ("url_failed", REDIRECTS + 1)
    assert "more than 5 times" in message


def head(*lines: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", *lines)).encode()


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        head("X-Slow: "),
        head("", ""),
        head("Content-Length: 10000", "", ""),
        head("Transfer-Encoding: chunked", "", "5;"),
    ],
    ids=["nothing", "header", "body", "body of a length", "chunk"],
)
def test_who_loiters_is_cut_off(site: Website, begin: bytes) -> None:
    site.pages["/"] = site.drip(b"a", begin)
    began = time.monotonic()
    code, message = refusal(site, seconds=0.4)
    assert (code, len(site.asked)) == ("url_failed", 1)
    assert "longer than 0.4 s" in message
    assert time.monotonic() - began < 5


def test_who_loiters_before_tls_is_cut_off(site: Website) -> None:
    """The other side never answers the handshake."""
    began = time.monotonic()
    with pytest.raises(ItemError, match="longer than") as caught:
        fetcher(site, seconds=0.4).fetch(f"https://media.test:{site.port}/")
    assert caught.value.error_code == "url_failed"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "begin", [head("", ""), head("Transfer-Encoding: chunked", "", "1000000000", "")], ids=["no length", "chunked"]
)
def test_a_body_without_end_is_too_large(site: Website, begin: bytes) -> None:
    site.pages["/"] = site.drip(bytes(5000), begin)
    code, message = refusal(site)
    assert (code, len(site.asked)) == ("media_too_large", 1)
    assert str(LIMIT) in message


def test_a_length_over_the_limit_is_believed_at_once(site: Website) -> None:
    site.pages["/"] = head(f"Content-Length: {LIMIT + 1}", "", "")
    assert refusal(site)[0] == "media_too_large"


def test_a_body_at_the_limit_is_read(site: Website) -> None:
    site.pages["/"] = answer(bytes(LIMIT))
    assert len(fetch(site)) == LIMIT


def test_a_body_that_breaks_off_is_fetched_again(site: Website) -> None:
    short = answer(PICTURE, Content_Length=str(len(PICTURE) + 1))
    site.pages["/"] = [short, answer(PICTURE)]
    assert fetch(site) == PICTURE
    site.pages["/"] = short
    code, message = refusal(site)
    assert (code, len(site.asked)) == ("url_failed", 5)
    assert "broke off" in message


def test_what_may_be_better_in_a_moment_is_tried_again(site: Website) -> None:
    site.pages["/"] = [answer(status="503 Busy"), answer(status="429 Slow Down"), answer(PICTURE)]
    assert fetch(site) == PICTURE
    site.pages["/"] = answer(status="500 Oops")
    code, message = refusal(site)
    assert (code, len(site.asked)) == ("url_failed", 6)
    assert "500" in message


@pytest.mark.parametrize("status", ["404 Not Found", "401 No", "403 No", "204 No Content", "206 Partial", "304 Same"])
def test_other_answers_are_final(site: Website, status: str) -> None:
    site.pages["/"] = answer(status=status)
    code, message = refusal(site)
    assert (code, len(site.asked)) == ("url_failed", 1)
    assert status[:3] in message


def test_a_compressed_answer_is_not_unpacked(site: Website) -> None:
    site.pages["/"] = answer(b"\x1f\x8b bomb", Content_Encoding="gzip")
    assert refusal(site)[0] == "url_failed"


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        head(*["A: b"] * 200, "", ""),
        head("A: " + "b" * 70_000, "", ""),
        head("Transfer-Encoding: chunked", "", "zz", ""),
        head("Transfer-Encoding: chunked", "", "-5", "abc"),
    ],
    ids=["nothing", "words", "status", "many headers", "long header", "chunk size", "negative chunk size"],
)
def test_nonsense_is_no_answer(site: Website, page: bytes) -> None:
    site.pages["/"] = page
    code, message = refusal(site)
    assert code == "url_failed"
    assert PUBLIC not in message


def test_no_proxy_is_asked(site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    site.pages["/"] = answer(PICTURE)
    assert fetch(site) == PICTURE


def test_a_host_that_is_not_there(site: Website) -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    assert refusal(site, resolver=resolver)[0] == "url_failed"


def test_no_timer_stays_behind(site: Website) -> None:
    site.pages["/"] = answer(PICTURE)
    fetch(site)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
