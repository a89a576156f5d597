"""Batches of requests to /v1/chat/completions: an item for each, which a generate shard answers."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import ValidationError

from services.dispatcher.batches.lines import BatchLine, Fault
from shared.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    FinishReason,
    Usage,
    generation_of,
    translate,
)
from shared.errors import InvalidRequestError
from shared.generation import OWN_GENERATION
from shared.planning import Problem, Row, in_words
from shared.queues import Stage
from shared.schemas import Encoders

#: Items are named by the places of their requests, from which their results are told.
_NAME = "request-"


class Answered(NamedTuple):
    """What a language model said."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class Chat:
    """See `services.dispatcher.batches.endpoints.Endpoint`."""

    stage = Stage.GENERATE

    def __init__(self, request: Mapping[str, Any]):
        """For a job, whose encoders are those of its model."""
        self._model: str = request["model"]
        self._takes = Encoders.model_validate(request["encoders"]).chosen()

    def rows(self, request: BatchLine) -> list[Row]:
        """The one item of a request."""
        found = self._fields(request)
        name = {"id": f"{_NAME}{request.place}"}
        if isinstance(found, Problem):
            return [Row(request.line, name, problems={None: found})]
        return [Row(request.line, {**name, **found}, size=request.size)]

    def read(self, data: bytes) -> dict[int, Answered | Fault]:
        """The answers of a generate shard; of a model that chooses among labels, its own words."""
        table = pq.read_table(io.BytesIO(data))
        said = table.column("answer" if "answer" in table.column_names else "prediction")
        columns = [said, *(table.column(name) for name in ("finish_reason", "prompt_tokens", "completion_tokens"))]
        answers = [Answered(*values) for values in zip(*(column.to_pylist() for column in columns), strict=True)]
        ids, errors = (table.column(name).to_pylist() for name in ("id", "error"))
        return {
            int(id.removeprefix(_NAME)): answer if error is None else _fault(error)
            for id, answer, error in zip(ids, answers, errors, strict=True)
        }

    def answer(self, request: BatchLine, results: Sequence[Answered]) -> tuple[dict[str, Any], int, int]:  # noqa: ARG002
        """What /v1/chat/completions would have answered."""
        [said] = results
        choice = Choice(message=AnswerMessage(content=said.text), finish_reason=said.finish_reason)
        usage = Usage.of(said.prompt_tokens, said.completion_tokens)
        body = ChatCompletion(model=self._model, choices=[choice], usage=usage)
        return body.model_dump(mode="json"), said.prompt_tokens, said.completion_tokens

    def _fields(self, request: BatchLine) -> dict[str, Any] | Problem:
        """The item of a request, or what is wrong with its body."""
        try:
            asked = ChatRequest.model_validate(request.body)
        except ValidationError as error:
            return Problem(InvalidRequestError.code, in_words(error))
        translated = translate(asked.messages)
        media = {modality.value: reference for modality, reference in translated.media}
        if asked.stream:
            return Problem(InvalidRequestError.code, "stream: a batch answers in files; leave it out.")
        if asked.messages[-1].role == "assistant":
            return Problem(InvalidRequestError.code, "messages: the last one is the assistant's already.")
        if len(media) < len(translated.media):
            return Problem("unsuitable_media", "messages: in a batch they hold one picture and one sound at most.")
        if missing := sorted(media.keys() - self._takes.keys()):
            message = f"messages: the model {self._model!r} was not trained on {' and '.join(missing)}."
            return Problem("unsuitable_media", message)
        generation = generation_of(asked).model_dump(mode="json")
        return {
            "messages": [message.model_dump(mode="json") for message in translated.conversation],
            **media,
            "metadata": {"custom_id": request.custom_id, OWN_GENERATION: generation},
        }


def _fault(error: str) -> Fault:
    """Of `code: words`, as the generate pool writes it."""
    code, _, message = error.partition(": ")
    return Fault(code, message)
