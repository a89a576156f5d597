"""Uploads: multipart bodies that are broken or odd, and the names of files."""

from tests.corpus.cases import Request

_FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def cases() -> list[Request]:
    """All of them."""
    return [*_forms(), *_filenames()]


def _forms() -> list[Request]:
    """Multipart bodies."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    end = b"\r\n--b--\r\n"
    purpose = b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n'
    found: dict[str, tuple[bytes, dict[str, str], str]] = {
        "no body": (b"", {}, "422 invalid_request"),
        "no boundary": (part + b"x" + end, {"Content-Type": "multipart/form-data"}, "422 invalid_request"),
        "a boundary of 1,000 characters": (
            b"x",
            {"Content-Type": "multipart/form-data; boundary=" + "b" * 1000},
            "422 invalid_multipart",
        ),
        "a boundary of odd bytes": (
            b"x",
            {"Content-Type": 'multipart/form-data; boundary="\xff"'},
            "422 invalid_multipart",
        ),
        "JSON": (b"{}", {"Content-Type": "application/json"}, "422 invalid_request"),
        "no part": (b"--b--\r\n", _FORM, "422 invalid_request"),
        "noise": (b"noise" * 100, _FORM, "422 invalid_multipart"),
        "two files": (part + b"x\r\n" + part + b"y" + end, _FORM, "422 invalid_request"),
        "a file of no bytes": (part + end, _FORM, "422 empty_file"),
        "a part without a name": (
            b"--b\r\nContent-Disposition: form-data\r\n\r\nx" + end,
            _FORM,
            "422 invalid_request",
        ),
        "a part without headers": (b"--b\r\n\r\nx" + end, _FORM, "422 invalid_request"),
        "a header that is none": (b"--b\r\nnoise\r\n\r\nx" + end, _FORM, "422 invalid_multipart"),
        "a header of 1 MiB": (b"--b\r\nX: " + b"x" * 2**20 + b"\r\n\r\nx" + end, _FORM, "422 invalid_multipart"),
        "10,000 headers": (b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\nx" + end, _FORM, "422 invalid_multipart"),
        "100,000 parts": (b"".join(field % i for i in range(100_000)) + b"--b--\r\n", _FORM, "422 invalid_multipart"),
        "a field of 1 MiB": (part + b"x" + purpose + b"x" * 2**20 + end, _FORM, "422 invalid_multipart"),
        "two purposes": (part + b"x" + purpose + b"a" + purpose + b"b" + end, _FORM, "422 invalid_request"),
        "an odd purpose": (part + b"x" + purpose + b"../x" + end, _FORM, "422 invalid_request"),
        "cut off": (part + b"x", _FORM, "422 invalid_multipart"),
        "a part within a part": (
            part + b'--c\r\nContent-Disposition: form-data; name="file"\r\n\r\ny\r\n--c--' + end,
            _FORM,
            "200 a",
        ),
    }
    return [
        Request(f"upload: {name}", "POST", "/v1/files", expected, content, headers)
        for name, (content, headers, expected) in found.items()
    ]


#: What is sent as a file's name, and what becomes of it.
FILENAMES = {
    "../../etc/passwd": "passwd",
    "..\\..\\windows\\win.ini": "win.ini",
    "C:\\a.txt": "a.txt",
    "/": "file",
    "..": "file",
    ".": "file",
    "": "file",
    " ": "file",
    "a\tb.txt": "ab.txt",
    "a\x7fb.txt": "ab.txt",
    "\u202egnp.exe": "gnp.exe",
    "a\u2066b\u2069.txt": "ab.txt",
    "a\u2028b.txt": "ab.txt",
    "x" * 1_000 + ".txt": "x" * 255,
    "x" * 10_000 + ".txt": "",  # the header is too long
    "<script>.txt": "<script>.txt",
    "%2e%2e%2fa.txt": "%2e%2e%2fa.txt",
    "CON": "CON",
    "été 日本.txt": "été 日本.txt",
}


def _filenames() -> list[Request]:
    """Names of files; expected is what the answer calls the file."""
    form = '--b\r\nContent-Disposition: form-data; name="file"; filename="{}"\r\n\r\nx\r\n--b--\r\n'
    return [
        Request(
            f"filename: {name[:40]!a} ({len(name)})",
            "POST",
            "/v1/files",
            f"200 {clean}" if clean else "422 invalid_multipart",
            form.format(name.replace("\\", "\\\\")).encode(),
            _FORM,
        )
        for name, clean in FILENAMES.items()
    ]
