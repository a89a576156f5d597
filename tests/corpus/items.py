"""Lines of a manifest: texts, JSON, fields, references to media, URLs."""

import json
from collections.abc import Iterator

from shared.testing.web import Page, Website, answer
from tests.corpus.cases import OK, Line, item

TEXT_BYTES = 1024**2
LINE_BYTES = 2 * TEXT_BYTES
MEDIA_BYTES = 1024**2

GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="


def cases(site: Website, others_file: str) -> list[Line]:
    """All of them. `site` is the one address from which URLs may be fetched, `others_file` is another tenant's file."""
    return [*_texts(), *_json(), *_fields(), *_references(others_file), *_data_uris(), *_urls(site)]


def _texts() -> Iterator[Line]:
    yield item("text: empty", "empty_text", text="")
    yield item("text: white space of all kinds", "empty_text", text=" \t\r\n\u00a0\u2003\u3000\u2028")
    yield item("text: byte order mark alone", "empty_text", text="\ufeff")
    yield item("text: behind a byte order mark", OK, text="\ufeffword")
    yield item("text: NUL", OK, text="a\0b")
    yield item("text: control characters", OK, text="".join(map(chr, range(1, 32))) + "a\x7f\x85")
    yield item("text: right-to-left override", OK, text="\u202egnp.exe\u202c")
    yield item("text: 20,000 combining characters", OK, text="e" + "\u0301" * 20_000)
    yield item("text: one that grows eighteenfold when composed", OK, text="\ufdfa" * 10_000)
    yield item("text: emoji of many parts", OK, text="\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3ff" * 100)
    yield item("text: noncharacters", OK, text="\ufffe\uffff\U0010ffff")
    yield item("text: one word of 1 MB", OK, text="x" * 1_000_000)
    yield item("text: 1 MiB", OK, text="é" * (TEXT_BYTES // 2))
    yield item("text: 1 MiB and a byte", "text_too_large", text="é" * (TEXT_BYTES // 2) + "x")
    yield Line("text: line over the limit", b'{"id": "long", "text": "%s"}' % (b"x" * LINE_BYTES), "invalid_item")
    yield item("text: SQL", OK, text="'; DROP TABLE jobs; --")


def _json() -> Iterator[Line]:
    for name, line in {
        "lone surrogate": rb'{"id": "j1", "text": "\ud800"}',
        "surrogates the wrong way round": rb'{"id": "j2", "text": "\udc00\ud800"}',
        "not UTF-8": b'{"id": "j3", "text": "\xff\xfe"}',
        "overlong UTF-8": b'{"id": "j4", "text": "\xc0\xaf"}',
        "surrogate in UTF-8": b'{"id": "j5", "text": "\xed\xa0\x80"}',
        "NaN": b'{"id": "j6", "text": "a", "target": NaN}',
        "Infinity": b'{"id": "j7", "text": "a", "target": -Infinity}',
        "single quotes": b"{'id': 'j9', 'text': 'a'}",
        "comment": b'{"id": "j10", "text": "a"} // b',
        "comma at the end": b'{"id": "j11", "text": "a",}',
        "something behind": b'{"id": "j12", "text": "a"} {"id": "j13"}',
        "raw NUL": b'{"id": "j14", "text": "a\0"}',
        "raw tab": b'{"id": "j15", "text": "a\tb"}',
        "cut off": b'{"id": "j16", "text": "a',
        "100,000 lists in each other": b'{"id": "j17", "text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "100,000 objects in each other": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "leading zero": b'{"id": "j18", "text": "a", "target": 01}',
        "words": b"id,text",
        "number of 5,000 digits": b'{"id": "j20", "text": "a", "target": ' + b"9" * 5000 + b"}",
    }.items():
        yield Line(f"JSON: {name}", line, "invalid_json")
    for name, line in {
        "list": b'["id", "text"]',
        "number": b"7",
        "null": b"null",
        "1e400": b'{"id": "j8", "text": "a", "target": 1e400}',
    }.items():
        yield Line(f"JSON: {name}", line, "invalid_item")
    yield Line("JSON: a key twice, of which the last counts", b'{"id": "j21", "text": 7, "text": "a"}', OK)
    yield Line("JSON: white space around", b' \t{ "id" : "j22" , "text" : "a" } \r', OK)
    yield Line("JSON: escaped names", rb'{"\u0069d": "j23", "text": "\u0061"}', OK)


def _fields() -> Iterator[Line]:
    for name, fields in {
        "nothing but an id": {},
        "text is a number": {"text": 7},
        "text is a list": {"text": ["a"]},
        "image is an object": {"image": {"path": "a.png"}},
        "unknown field": {"text": "a", "__proto__": {"admin": True}},
        "label is empty": {"text": "a", "label": ""},
        "label is a number": {"text": "a", "label": 5},
        "label of 257 characters": {"text": "a", "label": "x" * 257},
        "target is a list": {"text": "a", "target": [1]},
        "target is true": {"text": "a", "target": {"a": 1}},
        "split is unknown": {"text": "a", "split": "dev"},
        "metadata is a list": {"text": "a", "metadata": [1]},
        "metadata of 65 KiB": {"text": "a", "metadata": {"k": "x" * 65 * 1024}},
        "nothing that is encoded": {"image": None, "label": "a"},
    }.items():
        yield item(f"field: {name}", "invalid_item", **fields)
    for name, id in {
        "missing": None,
        "empty": "",
        "number": 7,
        "list": ["a"],
        "of 257 characters": "x" * 257,
        "with a line break": "a\nb",
        "with a NUL": "a\0b",
        "with DEL": "a\x7f",
    }.items():
        yield Line(f"id: {name}", json.dumps({"id": id, "text": "a"}).encode(), "invalid_item")
    for id in (
        "../../etc/passwd",
        "/etc/passwd",
        "' OR 1=1 --",
        "<script>",
        "%00",
        "a\u202eb",
        "x" * 256,
        " ",
        "line-1",
    ):
        yield Line(f"id: {id[:20]!a}", json.dumps({"id": id, "text": "a"}).encode(), OK)
    yield item("field: metadata 100 deep", OK, text="a", metadata=json.loads('{"a":' * 100 + "1" + "}" * 100))
    yield item("field: metadata 180 deep", OK, text="a", metadata=json.loads('{"a":' * 180 + "1" + "}" * 180))
    yield item("field: metadata of odd keys", OK, text="a", metadata={"": 1, "\0": "\0", "a\nb": None, "__class__": 1})
    yield item("field: metadata of large numbers", OK, text="a", metadata={"n": 10**100, "x": 1e308, "tiny": 5e-324})
    yield item("field: target of a large number", OK, text="a", target=1e308)
    yield item("field: 10,000 labels", OK, text="a", label=[str(i) for i in range(10_000)])
    yield Line("field: id twice", b'{"id": "field: target of a large number", "text": "a"}', "duplicate_id")


def _references(others_file: str) -> Iterator[Line]:
    for reference in (
        "a.png",
        "",
        "/etc/passwd",
        "../../etc/passwd",
        "..\\..\\windows\\win.ini",
        "C:\\windows\\win.ini",
        "\\\\host\\share\\a",
        "a\0.png",
        "~/.ssh/id_rsa",
        "file-",
        "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
        others_file,
        others_file.upper(),
        "blobs/default/x",
        "${jndi:ldap://127.0.0.1/a}",
        "a" * 5000,
        "\u202egnp.a",
        "http:/127.0.0.1/",
        "//127.0.0.1/a",
    ):
        yield item(f"reference: {reference[:40]!a}", "missing_media", image=reference)


def _data_uris() -> Iterator[Line]:
    data = GIF.partition(",")[2]
    for name, uri, expected in (
        ("odd parameters", f'data:image/gif;charset=utf-8;name="a;b";x;;base64,{data}', OK),
        ("no type", f"data:;base64,{data}", OK),
        ("capitals", f"DATA:IMAGE/GIF;BASE64,{data}", OK),
        ("percent-encoded base64", GIF.replace("/", "%2F").replace("=", "%3D"), OK),
        (
            "percent-encoded bytes",
            "data:image/gif,GIF89a%01%00%01%00%80%00%00%FF%FF%FF%00%00%00%2C%00%00%00%00%01%00%01%00%00%02%02D%01%00%3B",
            OK,
        ),
        ("another type than its data", f"data:audio/wav;base64,{data}", OK),
        ("no bytes", "data:image/gif;base64,", "empty_media"),
        ("no comma", "data:image/gif;base64", "corrupt_media"),
        ("nothing", "data:", "corrupt_media"),
        ("not base64", "data:image/gif;base64,@@@@", "corrupt_media"),
        ("no padding", GIF.rstrip("="), "corrupt_media"),
        ("space within", GIF[:40] + " " + GIF[40:], "corrupt_media"),
        ("letters that are not ASCII", GIF[:40] + "äöü€" + GIF[40:], "corrupt_media"),
        ("URL-safe base64", "data:image/gif;base64,__8-", "corrupt_media"),
        ("base64 as the type", f"data:base64,{data}", "unsupported_format"),
        ("1 MiB and more, base64", "data:;base64," + "A" * (MEDIA_BYTES * 4 // 3 + 8), "media_too_large"),
        ("1 MiB and more, plain", "data:," + "A" * (MEDIA_BYTES + 1), "media_too_large"),
        ("in another", "data:;base64,ZGF0YTo7YmFzZTY0LA==", "unsupported_format"),
    ):
        yield item(f"data: URI: {name}", expected, image=uri)


def _urls(site: Website) -> Iterator[Line]:
    for url in (
        "https://127.0.0.1/",
        "https://localhost/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://0.0.0.0/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[fd00:ec2::254]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://user:pass@example.org/",
        "https://example.org:22/",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "https://example.org\\@127.0.0.1/",
        "https://example.org/\r\nHost: a",
        "s3://trivium/blobs/",
        "dict://127.0.0.1:6379/",
        "jar:https://example.org!/",
    ):
        expected = "missing_media" if url.startswith("jar:") else "url_not_allowed"
        yield item(f"URL: {url!a}", expected, image=url)
    picture = answer(_gif(), Content_Type="text/html")
    pages: dict[str, tuple[Page, str]] = {
        "/a.gif": (picture, OK),
        "/moved": (answer(status="302 Found", Location="/a.gif"), OK),
        "/to-metadata": (answer(status="302 Found", Location="http://169.254.169.254/latest/"), "url_not_allowed"),
        "/to-loopback": (answer(status="302 Found", Location="http://127.0.0.1/"), "url_not_allowed"),
        "/to-loopback-v6": (answer(status="302 Found", Location="http://[::1]/"), "url_not_allowed"),
        "/to-file": (answer(status="302 Found", Location="file:///etc/passwd"), "url_not_allowed"),
        "/circle": (answer(status="302 Found", Location="/circle"), "url_failed"),
        "/missing": (answer(status="404 Not Found"), "url_failed"),
        "/endless": (site.drip(bytes(200_000), b"HTTP/1.1 200 OK\r\n\r\n"), "media_too_large"),
        "/slow": (site.drip(b"a", b"HTTP/1.1 200 OK\r\n\r\n"), "url_failed"),
        "/too-long": (answer(Content_Length=str(MEDIA_BYTES + 1)), "media_too_large"),
        "/cut-off": (answer(_gif(), Content_Length="5000"), "url_failed"),
        "/compressed": (answer(_gif(), Content_Encoding="gzip"), "url_failed"),
        "/page": (answer(b"<html>", Content_Type="image/png"), "unsupported_format"),
        "/nonsense": (b"SSH-2.0-OpenSSH\r\n", "url_failed"),
    }
    for path, (page, expected) in pages.items():
        site.pages[path] = page
        yield item(f"URL: {path[1:]}", expected, image=f"http://127.0.0.2:{site.port}{path}")


def _gif() -> bytes:
    from shared.planning.media import decode_data_uri

    return decode_data_uri(GIF, MEDIA_BYTES)
