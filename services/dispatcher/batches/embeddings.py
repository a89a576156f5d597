"""Batches of requests to /v1/embeddings: an item for each input, whose vector an extraction shard leaves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from services.dispatcher.batches.lines import BatchLine
from shared import embeddings
from shared.batches import EmbeddingsBatchOf
from shared.embeddings import EmbeddingRequest
from shared.errors import InvalidRequestError
from shared.planning import Problem, Row, in_words
from shared.queues import Stage
from shared.schemas import Encoders
from shared.worker.slices import unpack


class Embedded(NamedTuple):
    """The vector of one input, float32 [d], and the tokens of its text."""

    vector: NDArray[np.float32]
    tokens: int


class Embeddings:
    """See `services.dispatcher.batches.endpoints.Endpoint`."""

    def __init__(self, request: Mapping[str, Any]):
        """For a job, whose encoders are the one that its batch names."""
        [self._modality] = Encoders.model_validate(request["encoders"]).chosen()
        self._encoder = EmbeddingsBatchOf.model_validate(request["batch"])
        self.stage = Stage(self._modality.value)

    def rows(self, request: BatchLine) -> list[Row]:
        """An item for each input; if the request cannot be understood, a single one that says so."""
        asked = _parse(request.body)
        if isinstance(asked, Problem):
            return [Row(request.line, {"id": f"line-{request.line}"}, problems={None: asked})]
        items = asked.items()
        fault = self._fault(asked)
        return [
            Row(
                request.line,
                {
                    "id": f"line-{request.line}" + (f".{place}" if place else ""),
                    self._modality.value: getattr(item, self._modality),
                    "metadata": {"custom_id": request.custom_id},
                },
                problems={} if fault is None else {None: fault},
                size=request.size // len(items),
            )
            for place, item in enumerate(items)
        ]

    def read(self, data: bytes) -> dict[int, Embedded]:
        """The vectors of an extraction shard. Workers of earlier releases did not count tokens."""
        arrays = unpack(data)
        tokens = arrays.get("tokens", np.zeros(len(arrays["index"]), np.int32))
        found = zip(arrays["index"].tolist(), arrays["vectors"], tokens.tolist(), strict=True)
        return {index: Embedded(vector, count) for index, vector, count in found}

    def answer(self, request: BatchLine, results: Sequence[Embedded]) -> tuple[dict[str, Any], int, int]:
        """What /v1/embeddings would have answered."""
        asked, tokens = EmbeddingRequest.model_validate(request.body), sum(one.tokens for one in results)
        body = embeddings.answer(asked, np.stack([one.vector for one in results]), tokens)
        return body.model_dump(mode="json"), tokens, 0

    def _fault(self, asked: EmbeddingRequest) -> Problem | None:
        try:
            asked.check_modality(self._modality)
            asked.check_dimensions(self._encoder.dimension, may_be_cut=self._encoder.may_be_cut)
        except InvalidRequestError as error:
            return Problem(error.error_code, error.message)
        return None


def _parse(body: Mapping[str, Any]) -> EmbeddingRequest | Problem:
    try:
        return EmbeddingRequest.model_validate(body)
    except ValidationError as error:
        return Problem(InvalidRequestError.code, in_words(error))
