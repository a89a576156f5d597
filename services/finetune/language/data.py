"""A feature set as a language model is tuned on it: conversations, what is to be answered, and the media's vectors."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from pydantic import TypeAdapter

from services.finetune.data import Dataset, read_parts
from shared.conversations import Message, markers
from shared.errors import JobError
from shared.ml.language.soft_tokens import Media
from shared.prompts import PromptTemplate
from shared.queues import Modality

_CONVERSATION = TypeAdapter(list[Message])

#: What enters a language model through a projector.
PROJECTED = (Modality.IMAGE, Modality.AUDIO)


@dataclass(frozen=True)
class Conversations:
    """Rows of a feature set: its vectors and labels, and the words of each item."""

    items: Dataset
    texts: list[str | None]
    messages: list[list[Message] | None]
    targets: list[str | None]


@dataclass(frozen=True)
class Example:
    """One item as a language model meets it: a question, the media of its markers, the answer, and if it is a label (or
    several) which."""

    id: str
    question: list[Message]
    media: list[Media]
    answer: str
    labels: list[str]
    split: str | None


def read_conversations(tables: Iterable[pa.Table], dimensions: Mapping[Modality, int]) -> Conversations:
    """The parts of a feature set (see services/fusion/parquet.py); see `read_parts`."""
    kept = list(tables)
    columns: dict[str, list[str | None]] = {"text": [], "messages": [], "target": []}
    for table in kept:
        for name, values in columns.items():
            there = name in table.column_names
            values.extend(table.column(name).to_pylist() if there else [None] * table.num_rows)
    wanted = {m: d for m, d in dimensions.items() if m in PROJECTED}
    return Conversations(
        read_parts(kept, wanted),
        columns["text"],
        [None if m is None else _CONVERSATION.validate_json(m) for m in columns["messages"]],
        [None if t is None else _as_words(json.loads(t)) for t in columns["target"]],
    )


def make_examples(data: Conversations, prompt: PromptTemplate) -> list[Example]:
    """The items that have an answer, by id, so that nothing depends on the order in which they came.

    The answer is the item's last assistant message, or else its target, or else its labels. Raises JobError
    (`no_answers`).
    """
    rows = sorted(range(len(data.items)), key=data.items.ids.__getitem__)
    found = [example for row in rows if (example := _example(data, row, prompt)) is not None]
    if not found:
        message = (
            "No item has an answer to learn: give items an assistant message at the end of `messages`, a `target`, or "
            "a `label`."
        )
        raise JobError(message, code="no_answers", param="items")
    return found


def classes_of(examples: Sequence[Example]) -> list[str]:
    """The labels, if all answers are one label each; else none."""
    if any(len(example.labels) != 1 for example in examples):
        return []
    return sorted({example.labels[0] for example in examples})


def strata_of(examples: Sequence[Example]) -> list[str]:
    """What is to be in all parts alike: the label, or an answer that others give too."""
    counts = Counter(example.answer for example in examples)
    usual = len(counts) <= max(len(examples) // 5, 1)
    return [" ".join(e.labels) or (e.answer if usual else "") for e in examples]


def _example(data: Conversations, row: int, prompt: PromptTemplate) -> Example | None:
    items, messages, labels = data.items, data.messages[row], list[str]()
    answer = data.targets[row]
    if messages is not None and messages[-1].role == "assistant":
        messages, answer = messages[:-1], messages[-1].text
    elif answer is None and items.labels[row]:
        labels = sorted(set(items.labels[row]))
        answer = ", ".join(prompt.words_for(label)[0] for label in labels)
    has = [m for m in PROJECTED if m in items.present and items.present[m][row]]
    question = prompt.question(data.texts[row], has) if messages is None else messages
    if answer is None or not question:
        return None
    media = [_medium(items, row, Modality(modality)) for modality in markers(question)]
    return Example(items.ids[row], question, media, answer, labels, items.splits[row])


def _medium(items: Dataset, row: int, modality: Modality) -> Media:
    there = modality in items.present and bool(items.present[modality][row])
    return Media(modality, items.vectors[modality][row] if there else None)


def _as_words(target: object) -> str:
    return target if isinstance(target, str) else json.dumps(target)


def without_media(example: Example) -> Example:
    """The same with nothing behind its markers."""
    return replace(example, media=[replace(one, vector=None) for one in example.media])
