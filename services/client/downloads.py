"""Flows that end in files: results and models, each complete or not there at all."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import httpx

from services.client import requests
from services.client.errors import ClientError, DamagedDownload
from services.client.flows import BackOff, Flow, Receive, call, connection_failed, exchange
from services.client.requests import Request, ResultFormat
from services.client.uploads import OnBytes


def results(
    id: str, path: str | Path, *, format: ResultFormat = "parquet", on_bytes: OnBytes | None = None
) -> Flow[Path]:
    """Writes a job's feature set, or its predictions, to `path`, which is complete or not there at all; returns it.

    A download that breaks starts again. `on_bytes(received, total)` is told how far it is; the total may be None.
    """
    path = Path(path)
    yield from _fetch(requests.read_results(id, format), path, on_bytes)
    return path


def model(id: str, folder: str | Path, *, on_bytes: OnBytes | None = None) -> Flow[Path]:
    """Writes all files of a model that a job made to a new `folder`, which appears when all are there; returns it.

    Each is checked against its sha256; one that breaks starts again. `on_bytes(received, None)` is told of how many
    bytes. Raises NotFound, and ClientError: `no_files` (an encoder has none here), `folder_exists`, `unsafe_path`.
    """
    entry = yield from call(requests.get_model(id))
    if not entry.files:
        raise ClientError(f"{id} has no files here: only a model that a job made can be downloaded.", code="no_files")
    received = 0
    with new_folder(Path(folder)) as unfinished:
        for name in entry.files:
            path = _below(unfinished, name)
            yield from _fetch(requests.read_model_file(id, name), path, _behind(received, on_bytes), checked=True)
            received += path.stat().st_size
    return Path(folder)


def _fetch(request: Request[Any], path: Path, on_bytes: OnBytes | None, *, checked: bool = False) -> Flow[None]:
    """Writes what a request answers to `path`; `checked`: its ETag is the sha256 of the content."""
    for attempt in count(1):
        response = yield from exchange(request)
        try:
            with atomic_file(path) as file:
                digest = yield from _copy(response, file, on_bytes)
                if checked:
                    _check(response, digest)
            return
        except (httpx.TransportError, DamagedDownload) as error:
            if not (yield BackOff(attempt)):
                raise connection_failed(error) if isinstance(error, httpx.TransportError) else error from error


def _copy(response: httpx.Response, file: BinaryIO, on_bytes: OnBytes | None) -> Flow[str]:
    """Returns the sha256 of what was copied."""
    length = response.headers.get("content-length")
    total = int(length) if length is not None else None
    done, digest = 0, hashlib.sha256()
    while (chunk := (yield Receive())) is not None:
        file.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        if on_bytes is not None:
            on_bytes(done, total)
    return digest.hexdigest()


def _check(response: httpx.Response, digest: str) -> None:
    # A proxy that compresses makes a tag weak (RFC 9110, 8.8.3); what arrives here is unpacked again.
    tag = re.fullmatch(r'(?:W/)?"([0-9a-f]{64})"', response.headers.get("etag", ""))
    if tag is None or tag[1] != digest:
        raise DamagedDownload(f"{response.request.url} did not arrive as it is stored (its sha256 differs).")


def _behind(before: int, on_bytes: OnBytes | None) -> OnBytes | None:
    """Counts the bytes of a file behind those of the files before it."""
    return on_bytes and (lambda received, _: on_bytes(before + received, None))


def _below(folder: Path, name: str) -> Path:
    """Where the file `name` goes. Raises ClientError (`unsafe_path`) if that is elsewhere."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ClientError(f"The model names a file outside its folder: {name}.", code="unsafe_path")
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when everything is written, and leaves nothing behind otherwise.

    Raises ClientError (`unwritable_file`).
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise ClientError(f"{path} cannot be written: {error.strerror}.", code="unwritable_file") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to that appears as `folder` when the context ends well, and leaves nothing behind otherwise.

    Raises ClientError (`folder_exists`, `unwritable_folder`).
    """
    if folder.exists():
        raise ClientError(f"There is a {folder} already; choose a folder that is not there yet.", code="folder_exists")
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(folder)
    except OSError as error:
        raise ClientError(f"{folder} cannot be written: {error.strerror}.", code="unwritable_folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
