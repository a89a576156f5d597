"""What the generate pool does with its shard: a part of a feature set to a part of a language model's answers."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.finetune.generate.models import LanguageModelCache
from services.finetune.generate.questions import questions
from services.finetune.generate.turns import in_turns
from services.finetune.language.labels import label_of
from shared.errors import JobError
from shared.generation import OWN_GENERATION, Generation, JobGeneration
from shared.jobs.records import Finished, Lease
from shared.ml.feature_parts import find_parts, read_part
from shared.ml.language.choosing import label_probabilities
from shared.ml.language.generate import Generated, Prompted, decode
from shared.ml.language.tuned import TunedConfig, TunedLanguageModel
from shared.prompts import PromptTemplate, labels_of_words
from shared.storage import keys
from shared.worker.context import WorkerContext
from shared.worker.control import Control

#: Rows whose labels are weighed before somebody who waits has a turn.
_CHOSEN_AT_ONCE = 8

#: Columns of the feature set that stay beside the answers.
_KEPT = ("id", "label", "target", "split", "metadata")

#: What is wrong with one conversation, and not with the model.
_UNANSWERABLE = frozenset({"conversation_impossible", "answer_too_long", "media_differ"})


@dataclass
class Part:
    """A part of a feature set, and what is said of its rows. `table` is None if the part's fusion failed.

    `errors` are those of the rows that cannot be asked about. `labels`, if given, are chosen among by likelihood;
    `probabilities` then has theirs of each row, in the same order.
    """

    table: pa.Table | None
    words: dict[str, str] = field(default_factory=dict)
    prompts: dict[int, Prompted] = field(default_factory=dict)
    answers: dict[int, Generated] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    labels: list[str] | None = None
    probabilities: dict[int, list[float]] = field(default_factory=dict)


class Generate:
    """Handler of the generate stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext, models: LanguageModelCache):
        self._context, self._models = context, models

    def load(self, lease: Lease, control: Control) -> None:
        """Brings the model into memory."""
        self._models.get(lease.request["model"], lease.tenant, control)

    def prepare(self, lease: Lease, control: Control) -> Part:
        """Reads the part, and makes the questions."""
        model = self._models.get(lease.request["model"], lease.tenant, control)
        parts = control.patiently(lambda: find_parts(self._context.sessions, lease))
        tables = [control.patiently(partial(read_part, self._context.store, part)) for part in parts]
        if not tables:
            return Part(None)
        given = lease.request.get("prompt")
        prompt = PromptTemplate.model_validate(given) if given else model.config.prompt or PromptTemplate()
        part = Part(tables[0], _words(model.config, prompt), prompt=prompt)
        if model.config.by_likelihood:
            part.labels = model.config.labels
        drawn = generations(lease.request, tables[0])
        for row, question in enumerate(questions(tables[0], model.dimensions, prompt)):
            control.check()
            prompted = Prompted(question.conversation, question.media, drawn[row])
            error = _error_of(model, prompted)
            if error is None:
                part.prompts[row] = prompted
            else:
                part.errors[row] = error
        return part

    def run(self, lease: Lease, prepared: Part, control: Control) -> Part:
        """Generates the answers; those who wait for one of theirs go first, between any two tokens."""
        rows = list(prepared.prompts)
        with self._models.held(lease.request["model"], lease.tenant, control) as model:
            control.breathe()
            if prepared.labels is not None:
                self._choose(model, prepared, control)
                return prepared
            steps = decode(model, [prepared.prompts[row] for row in rows], streams=False)
            for step in in_turns(steps, self._models.computing):
                prepared.answers |= {rows[piece.place]: piece.end for piece in step if piece.end is not None}
                control.breathe()
        return prepared

    def _choose(self, model: TunedLanguageModel, part: Part, control: Control) -> None:
        """How likely each label is as the answer, some rows at a time."""
        assert part.labels is not None
        rows = list(part.prompts.items())
        for first in range(0, len(rows), _CHOSEN_AT_ONCE):
            chunk = rows[first : first + _CHOSEN_AT_ONCE]
            with self._models.computing:
                found = label_probabilities(
                    model, [prompted for _, prompted in chunk], part.prompt, part.labels,
                    calibration=model.config.calibration, check=control.check,
                )  # fmt: skip
            part.probabilities |= {row: likely.tolist() for (row, _), likely in zip(chunk, found, strict=True)}
            control.breathe()

    def store(self, lease: Lease, output: Part, control: Control) -> Finished:
        """Writes the part of answers."""
        if output.table is None:
            return Finished(lease, None, items_done=lease.items)
        rows = output.table.num_rows
        target = io.BytesIO()
        pq.write_table(answers_table(output), target, compression="zstd")
        key = keys.prediction_part(lease.job_id, lease.index, lease.token)
        store = self._context.store
        stored = control.patiently(lambda: store.put(key, target.getvalue(), "application/vnd.apache.parquet"))
        # On the feature set of another job, nobody has counted its items in this one.
        counted = rows if "features" in lease.spec else 0
        return Finished(lease, stored, items_done=lease.items, succeeded=counted, rows=rows)


def generations(request: Mapping[str, Any], table: pa.Table) -> list[Generation]:
    """How the answer to each row is drawn: as the job says, or, in one that answers a batch, as the item does."""
    if "batch" not in request:
        return [JobGeneration.model_validate(request.get("generation") or {})] * table.num_rows
    metadata = [json.loads(one) for one in table.column("metadata").to_pylist()]
    return [Generation.model_validate(one[OWN_GENERATION]) for one in metadata]


def answers_table(part: Part) -> pa.Table:
    """The items with what the model says of them.

    `prediction` (the answer; of a model that was tuned on labels, the label that it stands for, or null, and the
    answer itself as `answer`), `finish_reason`, `prompt_tokens`, `completion_tokens`, and `error`, why there is no
    answer. Of a model that chooses by likelihood: `prediction`, `probability` of it, `probabilities` of the labels, in
    the order of its classes, and `error`.
    """
    assert part.table is not None
    rows = range(part.table.num_rows)
    errors = _strings([part.errors.get(row) for row in rows])
    if part.labels is not None:
        return pa.table({name: part.table.column(name) for name in _KEPT} | _chosen(part) | {"error": errors})
    answers = [part.answers.get(row) for row in rows]
    said = [None if answer is None else answer.text for answer in answers]
    columns: dict[str, Any] = {name: part.table.column(name) for name in _KEPT}
    if part.words:
        columns["prediction"] = _strings([None if text is None else label_of(text, part.words) for text in said])
        columns["answer"] = _strings(said)
    else:
        columns["prediction"] = _strings(said)
    columns["finish_reason"] = _strings([None if answer is None else answer.finish_reason for answer in answers])
    for name in ("prompt_tokens", "completion_tokens"):
        columns[name] = pa.array([None if a is None else getattr(a, name) for a in answers], pa.int64())
    return pa.table(columns | {"error": errors})


def _chosen(part: Part) -> dict[str, pa.Array]:
    assert part.table is not None
    assert part.labels is not None
    likely = [part.probabilities.get(row) for row in range(part.table.num_rows)]
    best = [None if one is None else int(np.argmax(one)) for one in likely]
    return {
        "prediction": _strings([None if place is None else part.labels[place] for place in best]),
        "probability": pa.array([None if one is None else max(one) for one in likely], pa.float64()),
        "probabilities": pa.array(likely, pa.list_(pa.float32(), len(part.labels))),
    }


def _strings(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string())


def _words(config: TunedConfig, prompt: PromptTemplate) -> dict[str, str]:
    """The label by each word that stands for one, if the model chooses among labels."""
    return labels_of_words({label: prompt.words_for(label) for label in config.labels})


def _error_of(model: TunedLanguageModel, prompted: Prompted) -> str | None:
    """Why this one cannot be asked, if that is so."""
    try:
        model.encode(prompted.conversation, prompted.media)
    except JobError as error:
        if error.error_code not in _UNANSWERABLE:
            raise
        return f"{error.error_code}: {error.message}"
    return None
