"""A web server on loopback whose answers are made up byte by byte: for tests of what fetches URLs."""

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

#: Raw bytes of an answer, or what writes them to the connection.
Page = bytes | Callable[[socket.socket], None]


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """The bytes of an answer (`_` in the names of headers stands for `-`); it says how long its body is."""
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Website:
    """Serves `pages` by target, the last of a list again and again; `asked` keeps the heads of the requests.

    As a context. A page that is not there is a 404; the connection is closed after each answer.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None):
        self._tls = tls
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        self.pages: dict[str, Page | list[Page]] = {}
        self.asked: list[str] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def drip(self, piece: bytes, first: bytes = b"") -> Page:
        """A page that never ends: `first`, then `piece` every 20 ms, until the client has had enough."""

        def write(connection: socket.socket) -> None:
            connection.sendall(first)
            while not self._ended.wait(0.02):
                connection.sendall(piece)

        return write

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._ended.is_set():
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, suppress(OSError):
            if self._tls is None:
                self._answer(connection)
            else:
                with self._tls.wrap_socket(connection, server_side=True) as secured:
                    self._answer(secured)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (chunk := connection.recv(4096)):
                return
            request += chunk
        self.asked.append(request.decode("latin-1"))
        page = self.pages.get(self.asked[-1].split(" ")[1], answer(b"nothing here", "404 Not Found"))
        if isinstance(page, list):
            page = page.pop(0) if len(page) > 1 else page[0]
        if callable(page):
            page(connection)
        else:
            connection.sendall(page)
