"""The output and the error file of a batch, in OpenAI's form: a line for each request, in their order."""

from collections.abc import Iterable
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import orjson

from services.dispatcher.batches.endpoints import Endpoint
from services.dispatcher.batches.lines import BatchLine, Fault
from services.dispatcher.batches.results import Results
from shared.errors import InvalidRequestError, TriviumError
from shared.jobs.batches import CONTENT_TYPE, Summary
from shared.jobs.models import Job
from shared.jobs.records import StoredObject
from shared.schemas import ErrorBody, ErrorResponse, JobStatus
from shared.storage.objects import ObjectStore

#: Files in the making are kept in memory up to this size, on disk above.
SPOOL_BYTES = 4 * 1024**2

#: Faults of ours, where others are the request's.
_OURS = frozenset({"shard_failed", "out_of_memory", "item_crashed_worker", "result_lost"})


class BatchFiles:
    """The files of one batch while they are written; as a context."""

    def __init__(self, batch_id: str, job: Job, endpoint: Endpoint):
        self._prefix, self._endpoint = batch_id.replace("batch-", "batch_req_"), endpoint
        self._unanswered = _why_unanswered(job)
        self._open = ExitStack()
        self._output, self._errors = self._new(), self._new()
        self._completed = self._failed = self._input_tokens = self._output_tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def summary(self) -> Summary:
        """What was written so far."""
        return Summary(self._completed, self._failed, self._input_tokens, self._output_tokens)

    def write(self, requests: Iterable[BatchLine], results: Results) -> None:
        """Answers all requests."""
        index = 0
        for request in requests:
            count = len(self._endpoint.rows(request))
            self._answer(request, [results.of(place) for place in range(index, index + count)])
            index += count

    def store(self, store: ObjectStore, output_key: str, error_key: str) -> list[StoredObject | None]:
        """Uploads the output and the error file; one without lines is None."""
        files = ((self._output, self._completed, output_key), (self._errors, self._failed, error_key))
        return [_upload(store, key, content) if lines else None for content, lines, key in files]

    def _answer(self, request: BatchLine, found: list[Any]) -> None:
        faults = [one for one in found if one is None or isinstance(one, Fault)]
        if faults:
            self._errors.write(self._refusal(request, faults[0]))
            self._failed += 1
            return
        body, tokens_in, tokens_out = self._endpoint.answer(request, found)
        self._output.write(self._line(request, 200, body))
        self._completed += 1
        self._input_tokens += tokens_in
        self._output_tokens += tokens_out

    def _refusal(self, request: BatchLine, fault: Fault | None) -> bytes:
        """The line of a request that has no answer; None: no worker got to it."""
        if fault is None:
            return self._line(request, 0, None)
        kind: type[TriviumError] = TriviumError if fault.code in _OURS else InvalidRequestError
        error = ErrorBody(message=fault.message, type=kind.type, code=fault.code)
        return self._line(request, kind.status, ErrorResponse(error=error).model_dump())

    def _line(self, request: BatchLine, status: int, body: dict[str, Any] | None) -> bytes:
        id = f"{self._prefix}_{request.line}"
        response = None if body is None else {"status_code": status, "request_id": id, "body": body}
        error = None if body is not None else {"code": self._unanswered.code, "message": self._unanswered.message}
        line = {"id": id, "custom_id": request.custom_id, "response": response, "error": error}
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def _new(self) -> IO[bytes]:
        return self._open.enter_context(SpooledTemporaryFile(max_size=SPOOL_BYTES))


def _why_unanswered(job: Job) -> Fault:
    """What is said of requests that no worker got to."""
    if job.status == JobStatus.CANCELLED:
        return Fault("batch_cancelled", "The batch was cancelled before this request was answered.")
    if job.error_code == "deadline_exceeded":
        return Fault("batch_expired", "This request was not answered before the completion window was over.")
    return Fault(job.error_code or "unanswered", job.error_message or "This request was not answered.")


def _upload(store: ObjectStore, key: str, content: IO[bytes]) -> StoredObject:
    content.seek(0)
    return store.put_stream(key, content, CONTENT_TYPE)
