"""Which URLs may be fetched: how they must be written, and which addresses their names may stand for.

The list of ways in which a URL leads to a server of the house instead of a public one is long (OWASP, "Server-Side
Request Forgery Prevention"); therefore only what is known to be harmless passes.
"""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote

import idna

from shared.errors import ItemError
from shared.settings import Fetching

#: Gives the addresses of a host, as text. Raises OSError if it has none.
Resolver = Callable[[str, int], Sequence[str]]

Address = IPv4Address | IPv6Address

LONGEST = 4096

_DEFAULT_PORTS = {"http": 80, "https": 443}

_LOOKS_LIKE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^/?#:@\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
#: What programs take for an IPv4 address in some notation: the last part is a number (WHATWG URL, "ends in a number").
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

#: Global unicast (RFC 4291), and what of it is not: protocol assignments with Teredo, documentation, 6to4.
_IPV6_UNICAST = IPv6Network("2000::/3")
_IPV6_SPECIAL = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
#: Beside what `ipaddress` knows: protocol assignments (some of which it takes for global), 6to4 relays.
_IPV4_SPECIAL = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")))
#: IPv4 behind a translator (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Url:
    """A URL in its parts: the host in ASCII, small letters; `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def is_url(reference: str) -> bool:
    """True for what means to be a URL, whether it may be fetched or not."""
    return _LOOKS_LIKE.match(reference) is not None


def parse_url(text: str, rules: Fetching) -> Url:
    """A URL that may be fetched as far as can be known before its host is looked up.

    Raises ItemError (`url_not_allowed`) for other schemes and ports, user names, spaces and control characters,
    backslashes, and IPv4 addresses in any notation but the usual one.
    """
    if not rules.urls:
        raise not_allowed(text, "URLs are switched off here; upload the file, or put it beside the manifest")
    if len(text) > LONGEST:
        raise not_allowed(text, f"it has {len(text)} characters; {LONGEST} are allowed")
    if not text.isprintable() or " " in text or "\\" in text:
        raise not_allowed(text, "it has spaces, control characters or backslashes; percent-encode them")
    match = _URL.fullmatch(text)
    if match is None:
        raise not_allowed(text, "it is not of the form https://host/path, without user name and password")
    scheme = match["scheme"].lower()
    schemes = ("https", "http") if rules.http else ("https",)
    if scheme not in schemes:
        raise not_allowed(text, f"only {' and '.join(schemes)} URLs are fetched here")
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if port not in rules.ports:
        raise not_allowed(text, f"port {port} is not among those allowed ({', '.join(map(str, rules.ports))})")
    host = _ascii_host(match["host"])
    if host is None:
        raise not_allowed(text, "its host is neither a name nor an IP address in the usual notation")
    target = re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0]), match["target"] or "/")
    return Url(scheme, host, port, target if target.startswith("/") else f"/{target}")


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def find_addresses(url: Url, rules: Fetching, resolver: Resolver) -> list[Address]:
    """The addresses of a URL's host, looked up once: connect to these and to no others.

    Raises ItemError (`url_not_allowed`) if any of them is neither public nor in the networks that the rules allow, and
    OSError if there are none.
    """
    found = [_plain(ip_address(text)) for text in resolver(url.host, url.port)]
    if not found:
        raise OSError("the host has no address")
    if not all(_is_public(a) or any(a in network for network in rules.networks) for a in found):
        raise not_allowed(str(url), "its host has an address that is not public")
    return found


def not_allowed(url: str, reason: str) -> ItemError:
    """The error of a URL that is not fetched."""
    return ItemError(f"{shown(url)} is not fetched: {reason}.", code="url_not_allowed")


def shown(url: str) -> str:
    """A URL as messages show it: without query, in which keys may be, and not too long."""
    plain, query, _ = url.partition("?")
    return repr(plain[:200] + ("…" if query or len(plain) > 200 else ""))


def _ascii_host(text: str) -> str | None:
    """A host in ASCII and small letters (IDNA 2008, RFC 5891); None if it is neither a name nor a usual address."""
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        name = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode()
        name = name.removesuffix(".")
        if _ENDS_IN_NUMBER.fullmatch(name):
            return str(IPv4Address(name))
    except ValueError:  # which UnicodeError and idna's own are, too
        return None
    return name if len(name) <= 253 and _NAME.fullmatch(name) else None


def _plain(address: Address) -> Address:
    """IPv4 in the clothes of IPv6 (`::ffff:127.0.0.1`) as IPv4."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        special = address.is_multicast or any(address in network for network in _IPV4_SPECIAL)
        return address.is_global and not special
    if address in _NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _IPV6_UNICAST and not any(address in network for network in _IPV6_SPECIAL)
