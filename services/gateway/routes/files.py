"""Files: uploaded, listed, read, deleted. The shapes are OpenAI's, so that its client works."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal
from urllib.parse import quote

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers, errors
from services.gateway.paging import page
from services.gateway.streaming import begun
from services.gateway.uploads import PURPOSE, discard, store_upload
from shared.errors import TooLargeError
from shared.jobs import files
from shared.schemas import Deleted, File, Page

UPLOAD_PATH = "/v1/files"

#: A multipart body is its file and a little more.
_FORM_BYTES = 64 * 1024

#: As much of a body is read before it is passed on.
_CHUNK_BYTES = 1024 * 1024

_UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "minLength": 1},
                        "purpose": {
                            "type": "string",
                            "pattern": f"^{PURPOSE}$",
                            "default": "user_data",
                            "description": "a word to filter by",
                        },
                    },
                },
                "example": {"file": "(the bytes of emoji.tar)", "purpose": "user_data"},
            }
        },
    }
}

router = APIRouter(tags=["files"], responses=COMMON_ERRORS)


@router.post(
    UPLOAD_PATH,
    summary="Upload a file",
    responses=answers(examples.FILE, 413, 507),
    openapi_extra=_UPLOAD_FORM,
)
async def upload_file(request: Request, services: ServicesDep, caller: CallerDep) -> File:
    """Takes `multipart/form-data` with a part `file`, and streams it into storage. The same content is stored once."""
    limit = services.settings.limits.upload_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit + _FORM_BYTES:
        raise TooLargeError(f"The file is larger than the {limit} bytes allowed.", code="file_too_large", param="file")
    body = request.stream()

    async def next_chunk() -> bytes:
        gathered = bytearray()  # going to and fro between the threads for each packet would take longer than the rest
        while len(gathered) < _CHUNK_BYTES and (packet := await anext(body, b"")):
            gathered += packet
        return bytes(gathered)

    read = partial(anyio.from_thread.run, next_chunk)
    store = partial(store_upload, services, caller.tenant, request.headers.get("content-type"), read)
    # Uploads have threads of their own: slow ones must not keep everyone else waiting.
    return await anyio.to_thread.run_sync(store, limiter=request.app.state.upload_limiter)


@router.get(UPLOAD_PATH, summary="List files", responses=answers(examples.page_of(examples.FILE)))
def list_files(
    services: ServicesDep,
    caller: CallerDep,
    limit: Limit = 100,
    after: After = None,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="asc: oldest first")] = "desc",
) -> Page[File]:
    """The tenant's files, newest first unless told otherwise."""
    with services.sessions() as session:
        found = files.list_files(
            session, caller.tenant, limit=limit + 1, after=after, purpose=purpose, oldest_first=order == "asc"
        )
    return page(found, limit, lambda file: file.id)


@router.get("/v1/files/{id}", summary="Show a file", responses=answers(examples.FILE, 404))
def get_file(id: str, services: ServicesDep, caller: CallerDep) -> File:
    """One file's entry."""
    with services.sessions() as session:
        return files.get_file(session, caller.tenant, id)[0]


@router.get(
    "/v1/files/{id}/content",
    summary="Read a file",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The bytes",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        **errors(404),
    },
)
def read_file(id: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """The file's bytes, always as a download."""
    with services.sessions() as session:
        file, key = files.get_file(session, caller.tenant, id)
    content: Iterator[bytes] = services.store.stream(key)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{file.sha256}"',
    }
    return StreamingResponse(begun(content), media_type=file.content_type, headers=headers)


@router.delete(
    "/v1/files/{id}", summary="Delete a file", responses=answers(examples.deleted("file", "file-…"), 404, 409)
)
def delete_file(id: str, services: ServicesDep, caller: CallerDep) -> Deleted:
    """Deletes a file, and its bytes unless another file has the same. 409 while a job that has not ended reads it."""
    with services.sessions.begin() as session:
        key = files.delete_file(session, caller.tenant, id)
    if key is not None:
        discard(services.store, key)
    return Deleted(id=id, object="file")
