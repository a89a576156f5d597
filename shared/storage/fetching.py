"""Fetching what a URL names: from checked addresses, a limited number of bytes, in a limited time."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urljoin

from shared.errors import ItemError
from shared.settings import Fetching
from shared.storage.urls import Address, Resolver, Url, find_addresses, not_allowed, parse_url, resolve, shown
from shared.version import trivium_version

#: A chain of redirects may be this long.
REDIRECTS = 5

#: After what may be better a moment later (a timeout, 5xx), a URL is tried again behind each of these pauses.
PAUSES = (0.2, 1.0)

_CONNECT_SECONDS = 5.0
_CHUNK_BYTES = 64 * 1024
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_TOO_MANY_REQUESTS = 429


class _NotNowError(Exception):
    """Why a try failed, in words; another one may not."""


class UrlFetcher:
    """Fetches URLs by the rules of one process. Thread-safe.

    Each host is looked up once and connected to at one of the addresses found (Host, SNI and certificate are the
    name's), so that a name that changes its mind in between gains nothing; redirects are checked in the same way.
    No proxy, cookie or credential is used.
    """

    def __init__(self, rules: Fetching, max_bytes: int, resolver: Resolver = resolve):
        self._rules, self._max_bytes, self._resolver = rules, max_bytes, resolver
        self._tls = ssl.create_default_context()

    def fetch(self, reference: str) -> bytes:
        """The bytes behind a URL, as they are. Raises ItemError: `url_not_allowed`, `url_failed`, `media_too_large`."""
        url = parse_url(reference, self._rules)
        deadline = time.monotonic() + self._rules.seconds
        for pause in (*PAUSES, None):
            try:
                return self._follow(url, deadline)
            except (OSError, HTTPException, _NotNowError) as error:
                if time.monotonic() >= deadline:
                    raise _failed(url, f"it took longer than {self._rules.seconds:g} s") from error
                if pause is None or isinstance(error, ssl.SSLCertVerificationError):
                    raise _failed(url, _in_words(error)) from error
            time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        raise AssertionError("the last try returns or raises")

    def _follow(self, url: Url, deadline: float) -> bytes:
        for _ in range(REDIRECTS + 1):
            with self._answer(url, deadline) as answer:
                if answer.status not in _REDIRECTING:
                    return self._body(url, answer, deadline)
                location = answer.headers.get("Location", "")
            url = self._redirected(url, location)
        raise _failed(url, f"it redirects more than {REDIRECTS} times")

    def _redirected(self, url: Url, location: str) -> Url:
        try:
            # Header bytes come as Latin-1; those that are not ASCII are UTF-8 in practice.
            target = urljoin(str(url), location.encode("latin-1", "replace").decode(errors="replace"))
        except ValueError as error:
            raise not_allowed(str(url), "it redirects to what is no URL") from error
        found = parse_url(target, self._rules)
        if url.scheme == "https" and found.scheme != "https":
            raise not_allowed(str(url), "it redirects to plain http")
        return found

    @contextmanager
    def _answer(self, url: Url, deadline: float) -> Iterator[HTTPResponse]:
        """The answer to a GET, its body still to be read. Raises OSError, HTTPException."""
        sock = _connect(find_addresses(url, self._rules, self._resolver), url.port, deadline)
        connection = HTTPConnection(url.host, url.port)
        with closing(sock), _cut_off(sock, deadline), closing(connection):
            connection.sock = self._tls.wrap_socket(sock, server_hostname=url.host) if url.scheme == "https" else sock
            headers = {
                "Host": url.authority,
                "User-Agent": f"trivium/{trivium_version()}",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
            }
            connection.request("GET", url.target, headers=headers)
            with closing(connection.getresponse()) as answer:
                yield answer

    def _body(self, url: Url, answer: HTTPResponse, deadline: float) -> bytes:
        if answer.status >= 500 or answer.status == _TOO_MANY_REQUESTS:
            raise _NotNowError(f"it answered {answer.status}")
        if answer.status != 200:
            raise _failed(url, f"it answered {answer.status}")
        if answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise _failed(url, "the answer is compressed, which was not asked for")
        length = answer.length  # None: until the end
        if length is not None and length > self._max_bytes:
            raise self._too_large(url)
        body = bytearray()
        while chunk := answer.read1(_CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - len(body))):
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large(url)
        if time.monotonic() >= deadline or (length is not None and len(body) < length):
            raise _NotNowError("the answer broke off")
        return bytes(body)

    def _too_large(self, url: Url) -> ItemError:
        message = f"{shown(str(url))} has more than the {self._max_bytes} bytes allowed."
        return ItemError(message, code="media_too_large")


def _connect(addresses: Sequence[Address], port: int, deadline: float) -> socket.socket:
    """A connection to the first of the addresses that takes one. Raises OSError."""
    for position, address in enumerate(addresses, 1):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            sock = socket.create_connection((str(address), port), min(left, _CONNECT_SECONDS))
        except OSError:
            if position == len(addresses):
                raise
        else:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            return sock
    raise TimeoutError


@contextmanager
def _cut_off(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Ends the connection at the deadline, whatever is going on then: who sends a byte now and then stays within every
    timeout of a single read."""
    with closing(sock.dup()) as twin:  # TLS takes the socket itself over

        def shut_down() -> None:
            with suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(deadline - time.monotonic(), 0), shut_down)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _failed(url: Url, reason: str) -> ItemError:
    return ItemError(f"{shown(str(url))} cannot be fetched: {reason}.", code="url_failed")


def _in_words(error: Exception) -> str:
    """Why a try failed; of connections no more than that, since details would tell of the network here."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, _NotNowError):
        return str(error)
    return "there is no sound answer from its host"
