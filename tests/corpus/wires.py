"""What a usual client refuses to send: broken HTTP, and what is none."""

from tests.corpus.cases import Wire


def cases() -> list[Wire]:
    """All of them."""
    get = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
    upload = b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    socket = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    post = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return [
        Wire("wire: noise", bytes(range(128, 256)) * 4 + b"\r\n\r\n", "400"),
        Wire("wire: TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n", "400"),
        Wire("wire: HTTP/0.9", b"GET /v1/jobs\r\n\r\n", "200"),
        Wire("wire: HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        Wire("wire: a NUL in the path", b"GET /v1/\0 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        Wire("wire: a NUL in a header", get + b"X: \0\r\n\r\n", "400"),
        Wire("wire: a path of raw UTF-8", "GET /v1/jobs/é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), "400"),
        Wire("wire: a path of 1 MiB", b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        Wire("wire: a header of 1 MiB", get + b"X: " + b"x" * 2**20 + b"\r\n\r\n", "400"),
        Wire("wire: 100,000 headers", get + b"X: y\r\n" * 100_000 + b"\r\n", "400"),
        Wire("wire: two lengths", post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", "400"),
        Wire("wire: a length below zero", post + b"Content-Length: -2\r\n\r\n{}", "400"),
        Wire("wire: a length of 2⁶⁴", post + b"Content-Length: 18446744073709551616\r\n\r\n{}", "400"),
        Wire(
            "wire: a length and chunks",
            post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        Wire(
            "wire: a chunk of a size that is no number", post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", "400"
        ),
        Wire("wire: less than the length", post + b"Content-Length: 100\r\n\r\n{}", "no answer"),
        Wire("wire: 20 MiB announced", post + b"Content-Length: 20971520\r\n\r\n{}", "413 too_large"),
        Wire(
            "wire: upload of 100 GiB announced",
            upload + b"Content-Length: 107374182400\r\n\r\n--b",
            "413 file_too_large",
        ),
        Wire(
            "wire: a proxy's request", b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: a\r\n\r\n", "404 unknown_route"
        ),
        Wire("wire: a tunnel", b"CONNECT 127.0.0.1:6379 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        Wire(
            "wire: a WebSocket",
            get + socket,
            "200",
        ),
    ]
