"""HTTP/1.1 with a limit on the head of a request (RFC 9110, section 5.4): the parser takes headers without end."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Above this, and what one read of the socket may add, a request is refused while its head is still coming in.
HEAD_BYTES = 64 * 1024


class LimitedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol, for `uvicorn.Config(http=…)`."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """The first byte of a request is there."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """What follows is the body."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Counts what comes between the two."""
        goes_on = self._in_head
        super().data_received(data)
        if goes_on and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The head of the request has more than {HEAD_BYTES} bytes.")
