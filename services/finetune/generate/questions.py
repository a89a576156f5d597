"""What a language model is asked about the items of a feature set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.conversations import Message, markers
from shared.ml.feature_parts import vectors_of
from shared.ml.language.soft_tokens import Media
from shared.prompts import PromptTemplate
from shared.queues import Modality


@dataclass(frozen=True)
class Question:
    """A conversation up to the answer, and what stands for its markers."""

    conversation: list[Message]
    media: list[Media]


def questions(table: pa.Table, dimensions: Mapping[Modality, int], prompt: PromptTemplate) -> list[Question]:
    """Of each row: its own messages, without the answer that they may end with, or else the prompt.

    `dimensions`: of the vectors that the model takes.
    """
    vectors: dict[Modality, NDArray[np.float32]] = {}
    present: dict[Modality, NDArray[np.bool_]] = {}
    for modality, dimension in dimensions.items():
        vectors[modality], present[modality] = vectors_of(table, modality, dimension)
    conversations: Sequence[str | None] = (
        table.column("messages").to_pylist() if "messages" in table.column_names else [None] * table.num_rows
    )
    found = []
    for row, (messages, text) in enumerate(zip(conversations, table.column("text").to_pylist(), strict=True)):
        held = {m: vectors[m][row] for m in vectors if present[m][row]}
        conversation = prompt.question(text, list(held)) if messages is None else _asked(messages)
        media = [Media(Modality(name), held.get(Modality(name))) for name in markers(conversation)]
        found.append(Question(conversation, media))
    return found


def _asked(messages: str) -> list[Message]:
    conversation = [Message.model_validate(message) for message in json.loads(messages)]
    return conversation[:-1] if conversation[-1].role == "assistant" else conversation
