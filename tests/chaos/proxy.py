"""A TCP proxy that misbehaves on demand: it delays, falls silent, and cuts connections at once or after some bytes."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Stands before a server on this machine. What is set here holds for all connections, those under way too."""

    def __init__(self, target_port: int):
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        #: Seconds that each chunk is held up.
        self.delay = 0.0
        #: Bytes until the connection that carries the last of them is cut.
        self.budget: int | None = None
        self._silent = self._closed = False
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True).start()

    def cut(self) -> int:
        """Resets every connection; new ones are welcome. Returns how many there were."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.reset()
        return len(links)

    def silence(self) -> None:
        """From now on all connections stay open and carry nothing: half-open, as behind a router that forgot them."""
        self._silent = True
        with self._lock:
            for link in self._links:
                link.silent = True

    def speak(self) -> None:
        """New connections work again; those that fell silent never will."""
        self._silent = False

    def heal(self) -> None:
        """No faults any more; connections that fell silent are cut, as their peers' time limits would do at last."""
        self.delay, self.budget, self._silent = 0.0, None, False
        with self._lock:
            silent = {link for link in self._links if link.silent}
            self._links -= silent
        for link in silent:
            link.reset()

    def spend(self, size: int) -> bool:
        """Counts bytes against the budget; True when it is used up by them."""
        with self._lock:
            if self.budget is None:
                return False
            self.budget -= size
            if self.budget > 0:
                return False
            self.budget = None
            return True

    def forget(self, link: "_Link") -> None:
        """The link has ended."""
        with self._lock:
            self._links.discard(link)

    def close(self) -> None:
        """Accepts nothing more and cuts what there is."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            server.settimeout(None)
        except OSError:
            _reset(client)
            return
        link = _Link(self, client, server)
        with self._lock:
            link.silent = self._silent
            self._links.add(link)
        link.start()
        if self._closed:
            self.cut()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket):
        self._proxy, self._client, self._server = proxy, client, server
        self.silent = False
        self._directions, self._lock = 2, threading.Lock()
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        for source, target in ((self._client, self._server), (self._server, self._client)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def reset(self) -> None:
        _reset(self._client)
        _reset(self._server)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                if self._proxy.delay:
                    time.sleep(self._proxy.delay)
                if self.silent:
                    continue
                if self._proxy.spend(len(data)):
                    target.sendall(data[: len(data) // 2])
                    self.reset()
                    break
                target.sendall(data)
            if not self.silent:  # an end of file is not heard either
                target.shutdown(socket.SHUT_WR)
        except OSError:
            self.reset()
        self._end()

    def _end(self) -> None:
        """One direction has ended; when both have, so has the link."""
        with self._lock:
            self._directions -= 1
            if self._directions:
                return
        self._proxy.forget(self)
        self._client.close()
        self._server.close()


def _reset(end: socket.socket) -> None:
    """Closes with RST instead of FIN, and wakes whoever reads from it."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        end.shutdown(socket.SHUT_RD)
    end.close()
