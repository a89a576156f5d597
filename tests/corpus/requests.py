"""Requests: JSON bodies, jobs, S3 prefixes, parameters, paths and headers."""

import json
from typing import Any

from tests.corpus.cases import Request, job

_ITEMS = [{"id": "a", "text": "x"}]
_TEXT_ONLY = {"encoders": {"text": "hash-text", "image": None, "audio": None}}
_ACCEPTED = "202"


def cases(bucket: str) -> list[Request]:
    """All of them, for a platform whose bucket this is."""
    return [*_bodies(), *_jobs(), *_prefixes(bucket), *_parameters()]


def _bodies() -> list[Request]:
    """What is wrong with a body as JSON."""
    good = json.dumps({"items": _ITEMS, **_TEXT_ONLY}).encode()
    deep = b'{"items": [{"id": "a", "text": "x", "metadata": {"a": %s}}]}'
    invalid = {
        "100,000 lists in each other": b"[" * 100_000,
        "100,000 lists in metadata": deep % (b"[" * 100_000 + b"]" * 100_000),
        "something behind": good + b"{}",
        "not UTF-8": good.replace(b'"x"', b'"\xff"'),
        "single quotes": b"{'items': []}",
        "cut off": good[:-5],
        "raw NUL": good.replace(b"x", b"\0"),
    }
    return [
        *(job(f"body: {name}", "400 invalid_json", body) for name, body in invalid.items()),
        job(
            "body: a number of 10,000 digits", "400 invalid_json", b'{"items": [], "priority": ' + b"9" * 10_000 + b"}"
        ),
        job("body: NaN", "422 invalid_request", good.replace(b'"x"', b'"x", "target": NaN')),
        job("body: 1e400", "422 invalid_request", good.replace(b'"x"', b'"x", "target": 1e400')),
        job("body: nothing", "422 invalid_request", b""),
        job("body: UTF-16, which JSON may be", _ACCEPTED, good.decode().encode("utf-16")),
        job("body: a list", "422 invalid_request", b"[]"),
        job("body: null", "422 invalid_request", b"null"),
        job("body: the last of two keys counts", _ACCEPTED, good.replace(b'"x"', b'7, "text": "x"')),
        job("body: byte order mark", _ACCEPTED, b"\xef\xbb\xbf" + good),
        job("body: 20 MiB", "413 too_large", b'{"metadata": {"a": "' + b"x" * 20 * 2**20 + b'"}}'),
        job("body: another content type", "422 invalid_request", good, **{"Content-Type": "text/plain"}),
        job("body: a form", "422 invalid_request", b"items=1", **{"Content-Type": "application/x-www-form-urlencoded"}),
        job("body: gzip", "400 invalid_json", b"\x1f\x8b" + bytes(30), **{"Content-Encoding": "gzip"}),
        *(
            job(f"body: metadata {depth} deep", expected, deep % (b"[" * depth + b"]" * depth))
            for depth, expected in _DEPTHS.items()
        ),
        job("body: half of a surrogate pair", "422 invalid_unicode", good.replace(b'"x"', rb'"\ud800"')),
        *(
            job(
                f"body: half of a surrogate pair in {place}",
                "422 invalid_request",
                good.replace(b'"x"', b'"x", "metadata": ' + value),
            )
            for place, value in {"metadata": rb'{"a": "\udfff"}', "its keys": rb'{"\udfff": 1}'}.items()
        ),
    ]


_DEPTHS = {100: _ACCEPTED, 250: _ACCEPTED, 260: "422 invalid_request", 900: "422 invalid_request"}


def _jobs() -> list[Request]:
    """What is wrong with a job, read as JSON."""
    wrong: dict[str, tuple[str, Any]] = {
        "no items": ("422 invalid_request", {}),
        "items and input": ("422 invalid_request", {"items": _ITEMS, "input": {"file_id": "file-x"}}),
        "an unknown field": ("422 invalid_request", {"items": _ITEMS, "itmes": []}),
        "an unknown type": ("422 invalid_request", {"type": "mine", "items": _ITEMS}),
        "items of a wrong type": ("422 invalid_request", {"items": {"id": "a"}}),
        "an item of a wrong type": ("422 invalid_request", {"items": [None]}),
        "10,001 items": ("413 too_many_items", {"items": [{"id": str(i), "text": "x"} for i in range(10_001)]}),
        "an encoder that there is not": ("422 unknown_encoder", {"items": _ITEMS, "encoders": {"text": "../../x"}}),
        "an encoder with a NUL": ("422 unknown_encoder", {"items": _ITEMS, "encoders": {"text": "\0"}}),
        "another modality's encoder": ("422 unknown_encoder", {"items": _ITEMS, "encoders": {"text": "hash-image"}}),
        "no encoders": (
            "422 invalid_request",
            {"items": _ITEMS, "encoders": dict.fromkeys(("text", "image", "audio"))},
        ),
        "shards of no items": ("422 invalid_request", {"items": _ITEMS, "shard_size": 0}),
        "shards of 2⁶³ items": ("422 invalid_request", {"items": _ITEMS, "shard_size": 2**63}),
        "a priority of 10¹⁰⁰": ("422 invalid_request", {"items": _ITEMS, "priority": 10**100}),
        "17 pairs of metadata": (
            "422 invalid_request",
            {"items": _ITEMS, "metadata": {str(i): "x" for i in range(17)}},
        ),
        "metadata with a NUL": ("422 invalid_request", {"items": _ITEMS, "metadata": {"a": "\0"}}),
        "metadata that nests": ("422 invalid_request", {"items": _ITEMS, "metadata": {"a": {"b": "c"}}}),
        "metadata with half of a surrogate pair": (
            "422 invalid_request",
            {"items": _ITEMS, "metadata": {"a": "\ud800"}},
        ),
        "weights below zero": (
            "422 invalid_request",
            {"items": _ITEMS, "fusion": {"method": "weighted", "weights": {"text": -1}}},
        ),
        "a file that there is not": ("404 file_not_found", {"input": {"file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"}}),
        "a file with a path": ("404 file_not_found", {"input": {"file_id": "../../blobs/default/x"}}),
        "a file with a NUL": ("422 invalid_request", {"input": {"file_id": "file-\0"}}),
        "a file with half of a surrogate pair": ("422 invalid_unicode", {"input": {"file_id": "\ud800"}}),
    }
    return [
        *(job(f"job: {name}", expected, {**_TEXT_ONLY, **body}) for name, (expected, body) in wrong.items()),
        job(
            "job: an Idempotency-Key of 256 characters",
            "422 invalid_request",
            {"items": _ITEMS},
            **{"Idempotency-Key": "x" * 256},
        ),
        job(
            "job: an Idempotency-Key that is empty", "422 invalid_request", {"items": _ITEMS}, **{"Idempotency-Key": ""}
        ),
        job("job: an API key that there is not", "401 invalid_api_key", {"items": _ITEMS}, Authorization="Bearer sk-x"),
        job("job: an API key of odd bytes", "401 invalid_api_key", {"items": _ITEMS}, Authorization="Bearer \xff\xfe"),
        job(
            "job: an API key of 60,000 characters",
            "401 invalid_api_key",
            {"items": _ITEMS},
            Authorization="Bearer " + "x" * 60_000,
        ),
        job("job: basic credentials", "401 invalid_api_key", {"items": _ITEMS}, Authorization="Basic YTpi"),
    ]


def _prefixes(bucket: str) -> list[Request]:
    wrong = {
        "s3://trivium/imports/default/../other/": "422 invalid_request",
        "s3://trivium/imports/default//x/": "422 prefix_not_allowed",
        "s3://trivium/imports/default/./x/": "422 prefix_not_allowed",
        "s3://trivium/imports/default/%2e%2e/other/": _ACCEPTED,
        "s3://trivium/imports/default\\..\\other/": "422 prefix_not_allowed",
        "s3://trivium/imports/other/": "422 prefix_not_allowed",
        "s3://trivium/imports/default": _ACCEPTED,
        "s3://trivium/imports/defaults/": "422 prefix_not_allowed",
        "s3://trivium/imports/": "422 prefix_not_allowed",
        "s3://trivium/blobs/default/": "422 prefix_not_allowed",
        "s3://trivium/": "422 prefix_not_allowed",
        "s3://elsewhere/x/": "422 prefix_not_allowed",
        "S3://trivium/imports/default/": "422 invalid_request",
        "s3://TRIVIUM/imports/default/": "422 invalid_request",
        "s3://trivium//imports/default/": "422 invalid_request",
        "s3:///imports/default/": "422 invalid_request",
        "s3://127.0.0.1:9000/x/": "422 invalid_request",
        "s3://trivium/imports/default/\n": "422 invalid_request",
        "s3://a@trivium/imports/default/": "422 invalid_request",
        "https://trivium/imports/default/": "422 invalid_request",
        "file:///etc/": "422 invalid_request",
        "": "422 invalid_request",
        "s3://trivium/imports/default/" + "x" * 2000: "422 invalid_request",
    }
    return [
        job(f"prefix: {prefix[:60]!a}", expected, {"input": {"s3_prefix": prefix.replace("//trivium", f"//{bucket}")}})
        for prefix, expected in wrong.items()
    ]


def _parameters() -> list[Request]:
    """Paths and queries."""
    found = {
        "/v1/jobs?limit=0": "422 invalid_request",
        "/v1/jobs?limit=-1": "422 invalid_request",
        "/v1/jobs?limit=99999999999999999999999": "422 invalid_request",
        "/v1/jobs?limit=1e3": "422 invalid_request",
        "/v1/jobs?limit=%00": "422 invalid_request",
        "/v1/jobs?after=%00": "422 invalid_request",
        "/v1/jobs?after=%ED%A0%80": "200",
        "/v1/jobs?after=" + "x" * 301: "422 invalid_request",
        "/v1/jobs?status=dancing": "422 invalid_request",
        "/v1/jobs?metadata[%00]=x": "422 invalid_request",
        "/v1/jobs?metadata[a]=%00": "422 invalid_request",
        "/v1/jobs?metadata[a]=%FF": "200",
        "/v1/jobs?metadata[" + "x" * 5000 + "]=x": "200",
        "/v1/files?purpose=%00": "422 invalid_request",
        "/v1/files?after=%27%20OR%201=1": "200",
        "/v1/jobs/%00": "422 invalid_request",
        "/v1/jobs/%ED%A0%80": "404 job_not_found",
        "/v1/jobs/%FF": "404 job_not_found",
        "/v1/jobs/..%2f..%2fkeys": "404 unknown_route",
        "/v1/jobs/" + "x" * 20_000: "404 job_not_found",
        "/v1/files/%00": "422 invalid_request",
        "/v1/files/%00/content": "422 invalid_request",
        "/v1/models/%00": "422 invalid_request",
        "/v1/models/../keys%00": "404 unknown_route",
        "/v1/jobs/x/events?after=9999999999999999999999": "422 invalid_request",
        "/v1/jobs/x/events?after=%D9%A3": "422 invalid_request",
        "/v1/jobs/x/errors?after=%00": "404 job_not_found",
        "/v1/jobs/x/results?format=exe": "422 invalid_request",
        "/v1/keys?tenant=%00": "422 invalid_request",
        "//v1/jobs": "404 unknown_route",
        "/v1/jobs/": "404 unknown_route",
        "/docs/static/..%2f..%2fapp.py": "404 unknown_route",
        "/docs/static/%2e%2e/%2e%2e/app.py": "404 unknown_route",
    }
    return [
        *(Request(f"GET {path[:60]}", "GET", path, expected, headers={}) for path, expected in found.items()),
        Request("DELETE /v1/keys/%00", "DELETE", "/v1/keys/%00", "422 invalid_request", headers={}),
        Request("DELETE /v1/files/%00", "DELETE", "/v1/files/%00", "422 invalid_request", headers={}),
        Request("POST /v1/jobs/%00/cancel", "POST", "/v1/jobs/%00/cancel", "422 invalid_request", headers={}),
        Request("PUT /v1/jobs", "PUT", "/v1/jobs", "405 method_not_allowed", headers={}),
        Request("TRACE /v1/jobs", "TRACE", "/v1/jobs", "405 method_not_allowed", headers={}),
        Request(
            "odd Last-Event-ID", "GET", "/v1/jobs/x/events", "422 invalid_request", headers={"Last-Event-ID": "\xff"}
        ),
        Request("odd X-Request-ID", "GET", "/v1/jobs", "200", headers={"X-Request-ID": "\xff;" * 100}),
    ]
