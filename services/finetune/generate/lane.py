"""Conversations that somebody waits to see go on: what the generate pool does with interactive requests."""

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from services.finetune.generate.models import LanguageModelCache
from services.finetune.generate.turns import in_turns
from shared.conversations import markers
from shared.errors import JobError
from shared.lanes.messages import KEEP_SECONDS, GenerateItems, LaneRequest, Result, Said, Spoken
from shared.ml.language.generate import MOST_TOKENS, Piece, Prompted, decode
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import TunedLanguageModel
from shared.queues import Modality, Stage
from shared.worker.context import Prepared, Steps
from shared.worker.control import Control
from shared.worker.intake import Haste

#: Callers who are answered in one batch; more callers are batches of their own, which take turns.
_BATCH = 16


@dataclass(frozen=True)
class _Asked:
    """One caller's conversation."""

    model: str
    tenant: str
    prompted: Prompted
    gone: threading.Event


class ChatLane:
    """Lane handler of the generate stage (see shared.worker.context.LaneHandler)."""

    stage = Stage.GENERATE

    def __init__(self, models: LanguageModelCache):
        self._models = models

    def models(self) -> list[str]:
        """The language models in memory."""
        return self._models.ids()

    def load(self, request: LaneRequest, control: Control) -> None:
        """Brings the model into memory. Raises JobError."""
        self._models.get(request.model, request.tenant, control)

    def prepare(self, request: LaneRequest, control: Control) -> Prepared:
        """Reads the conversation. Raises JobError: `context_length_exceeded`, `conversation_impossible`,
        `unsuitable_features`."""
        payload = request.payload
        assert isinstance(payload, GenerateItems)
        model = self._models.get(request.model, request.tenant, control)
        media = [
            Media(Modality(name), rows.array()[0])
            for name, rows in zip(markers(payload.conversation), payload.media, strict=True)
        ]
        _check_media(model, media)
        encoded = model.encode(payload.conversation, media)
        room = model.context_length - len(encoded)
        if encoded.cut or room < 1:
            message = (
                f"The conversation has {len(encoded) + encoded.cut} tokens, and {request.model!r} can read "
                f"{model.context_length}, its answer included. Shorten it."
            )
            raise JobError(message, code="context_length_exceeded")
        generation = payload.generation
        generation = generation.model_copy(update={"max_tokens": min(generation.max_tokens, room)})
        gone = threading.Event()
        asked = _Asked(request.model, request.tenant, Prompted(payload.conversation, media, generation), gone)
        weight = max(1 / _BATCH, (len(encoded) + generation.max_tokens) / MOST_TOKENS)
        return Prepared(asked, weight, sum(rows.vector.nbytes for rows in media if rows.vector is not None), gone)

    def run(self, batch: Sequence[_Asked]) -> Steps:
        """Answers all of them together, a token each at a step."""
        first = batch[0]
        with (
            self._models.held(first.model, first.tenant, Haste(time.time() + KEEP_SECONDS)) as model,
            closing(
                decode(model, [asked.prompted for asked in batch], gone=lambda place: batch[place].gone.is_set())
            ) as steps,
        ):
            for step in in_turns(steps, self._models.computing):
                yield [(piece.place, result) for piece in step for result in _results(piece)]


def _results(piece: Piece) -> list[Result]:
    said: list[Result] = [Said(text=piece.text)] if piece.text else []
    if piece.end is None:
        return said
    end = piece.end
    spoken = Spoken(
        finish_reason=end.finish_reason, prompt_tokens=end.prompt_tokens, completion_tokens=end.completion_tokens
    )
    return [*said, spoken]


def _check_media(model: TunedLanguageModel, media: Sequence[Media]) -> None:
    for one in media:
        dimension = model.dimensions.get(one.modality)
        given = 0 if one.vector is None else len(one.vector)
        if dimension != given:
            wants = "none" if dimension is None else f"vectors of {dimension} numbers"
            message = f"Of {one.modality} the model takes {wants}, and was given {given} numbers."
            raise JobError(message, code="unsuitable_features")
