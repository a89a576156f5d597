"""What the fine-tuning pool does with its shard: a feature set to a model in the registry."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.finetune.data import Dataset, read_parts
from services.finetune.language.data import Conversations, read_conversations
from services.finetune.prompting.pretrained import pretrained
from services.finetune.recipes import Outcome, fine_tune
from services.finetune.recipes.instruction import sees
from services.finetune.tuning import Tuning, load_base, tune
from shared.errors import InvalidRequestError, JobError
from shared.ids import new_id
from shared.jobs import registry
from shared.jobs.encoders import MODEL, encoder_ids
from shared.jobs.records import Finished, Lease, NewModel, StoredObject
from shared.language_models import LanguageModelSpec, find_language_model
from shared.language_tuning import How, InstructionRequest, PromptRequest
from shared.ml.feature_parts import find_parts, read_part
from shared.ml.language.adapters import ADAPTER
from shared.ml.language.tuned import CONFIG, FILES, PROJECTOR, TunedLanguageModel
from shared.queues import Modality, Stage
from shared.requests import JobRequest
from shared.storage import keys
from shared.worker.context import Handler, LaneHandler, WorkerContext
from shared.worker.control import Control
from shared.worker.processes import torch_threads
from shared.worker.progress import JobProgress
from shared.worker.slices import read_verified

#: The files by which the row of a model knows it: the first of them that it has.
WEIGHTS = ("model.safetensors", ADAPTER, PROJECTOR, CONFIG)

_REQUEST: TypeAdapter[Any] = TypeAdapter(JobRequest)

_CONTENT_TYPES = {".json": "application/json", ".md": "text/markdown", ".png": "image/png"}


class FineTune:
    """Handler of the fine_tune stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext):
        self._context = context

    def load(self, lease: Lease, control: Control) -> None:
        """There is no model yet."""

    def prepare(self, lease: Lease, control: Control) -> Dataset | Conversations:
        """Reads the feature set; its words too, if a language model asks for them.

        Raises JobError (`features_too_large`) if it does not fit into memory.
        """
        dimensions = {Modality(m): int(d) for m, d in lease.schema["dimensions"].items() if m != "fused"}
        parts = control.patiently(lambda: find_parts(self._context.sessions, lease))
        size, limit = 4 * sum(p.rows for p in parts) * sum(dimensions.values()), self._memory()
        if size > limit:
            message = f"The vectors take {size} bytes; this worker has {limit} for them. Train on fewer items."
            raise JobError(message, code="features_too_large")
        tables = (control.patiently(partial(read_part, self._context.store, part)) for part in parts)
        if lease.request.get("language_model") is not None:
            return read_conversations(tables, dimensions)
        dataset = read_parts(tables, dimensions)
        named = lease.schema.get("splits")
        if named is None:
            return dataset
        store = self._context.store
        return _divided(dataset, control.patiently(lambda: read_verified(store, named["key"], named["sha256"])))

    def run(self, lease: Lease, prepared: Dataset | Conversations, control: Control) -> Outcome:
        """Trains; a shard that was begun before goes on from its newest checkpoint."""
        request = _request(lease)
        progress, worker = JobProgress(self._context, lease, control), self._context.settings.worker
        if isinstance(prepared, Conversations) and not _asks_only(request):
            outcome = tune(self._tuning(lease, request, prepared, control), worker, progress)
        else:
            models = pretrained(self._context, lease, control, lambda: self._language_model(lease, request, control))
            outcome = fine_tune(prepared, request, progress, models=models)
        progress.flush()
        return outcome

    def _language_model(self, lease: Lease, request: PromptRequest, control: Control) -> TunedLanguageModel:
        """The one that a prompt is put to, as it is."""
        spec, files = self._named(lease, control)
        base = load_base(spec, request, self._context.settings.worker)
        if files is not None:
            return TunedLanguageModel.load(files, base)
        return TunedLanguageModel.plain(base, sees=sees(base, encoder_ids(lease.schema)))

    def _tuning(
        self, lease: Lease, request: InstructionRequest | PromptRequest, data: Conversations, control: Control
    ) -> Tuning:
        spec, start = self._named(lease, control)
        return Tuning(data, request, spec, start, encoder_ids(lease.schema))

    def _named(self, lease: Lease, control: Control) -> tuple[LanguageModelSpec, dict[str, bytes] | None]:
        """The base model that a request asks for, and the files of the tuned one if it names one."""
        named = lease.request["language_model"]
        files = self._files_of(named, lease.tenant, control)
        base_id = named if files is None else json.loads(files[CONFIG])["language_model"]
        try:
            return find_language_model(self._context.language_models, base_id), files
        except InvalidRequestError as error:
            raise JobError(error.message, code=error.error_code, param=error.param) from error

    def _files_of(self, id: str, tenant: str, control: Control) -> dict[str, bytes] | None:
        """The files of a tuned model whose training goes on; None if `id` is one of the catalogue."""
        if not id.startswith(MODEL):
            return None

        def find() -> dict[str, dict[str, str]]:
            with self._context.sessions() as session:
                found: dict[str, dict[str, str]] = registry.find_model(session, tenant, id).spec["files"]
                return {name: file for name, file in found.items() if name in FILES}

        files, store = control.patiently(find), self._context.store
        return {n: control.patiently(partial(read_verified, store, f["key"], f["sha256"])) for n, f in files.items()}

    def store(self, lease: Lease, output: Outcome, control: Control) -> Finished:
        """Writes the model's files, and names it for the registry."""
        model_id = new_id("model")
        stored = {name: self._put(lease, model_id, name, data, control) for name, data in sorted(output.files.items())}
        weights = next(stored[name] for name in WEIGHTS if name in stored)
        files = {name: {"key": o.key, "sha256": o.sha256, "bytes": o.bytes} for name, o in stored.items()}
        spec = {
            **output.spec,
            "loader": "fine_tuned",
            "files": files,
            "preprocessing": lease.request["preprocessing"],
            "fine_tuned": {
                "encoders": encoder_ids(lease.schema),
                "fusions": output.spec["fusions"],
                "classes": output.spec["classes"],
                "multi_label": output.spec["multi_label"],
                "metrics": output.metrics,
            },
        }
        model = NewModel(
            id=model_id, kind=output.kind or lease.request["method"], modality=None,
            dimension=int(output.spec["dimension"]), fingerprint=weights.sha256, spec=spec,
        )  # fmt: skip
        # On the feature set of another job, nobody has counted its items in this one.
        counted = lease.items if "features" in lease.spec else 0
        return Finished(lease, weights, items_done=lease.items, succeeded=counted, model=model)

    def _put(self, lease: Lease, model_id: str, name: str, data: bytes, control: Control) -> StoredObject:
        key = keys.model(model_id, lease.token, name)
        kind = _CONTENT_TYPES.get(PurePath(name).suffix, "application/octet-stream")
        return control.patiently(lambda: self._context.store.put(key, data, kind))

    def _memory(self) -> int:
        return self._context.settings.worker.model_memory_bytes // 2


def _request(lease: Lease) -> Any:
    """What the job asks for. Raises JobError (`invalid_request`) if an earlier release took what this one refuses."""
    # Its items are in the feature set: where they were found, and in whose shape it was asked, matters no more.
    asked = {name: value for name, value in lease.request.items() if name != "openai"}
    try:
        return _REQUEST.validate_python(asked | {"features": lease.job_id, "input": None})
    except ValidationError as error:
        [first, *_] = error.errors()
        place = ".".join(str(part) for part in first["loc"][1:])
        message = f"The request was taken by another release, and this one refuses it: {place}: {first['msg']}"
        raise JobError(message, code="invalid_request", param=place or None) from error


def _asks_only(request: Any) -> bool:
    """Whether a language model stays as it is."""
    return isinstance(request, PromptRequest) and request.how is How.HARD


def _divided(dataset: Dataset, splits: bytes) -> Dataset:
    """The dataset divided as it was when its encoders were trained. Raises JobError (`too_few_items`)."""
    split_of: dict[str, str] = json.loads(splits)
    divided = replace(dataset, splits=[split_of.get(id) for id in dataset.ids])
    if lost := sorted(set(split_of.values()) - set(divided.splits)):
        message = (
            f"Of the items for {', '.join(lost)} none could be encoded; the others were seen in training encoders."
        )
        raise JobError(message, code="too_few_items")
    return divided


class FineTunePool:
    """What this service brings to the shard loop (see shared.worker.context.Pool)."""

    def __init__(self, context: WorkerContext):
        # No decode processes here: all cores are for training.
        threads = torch_threads(context.settings.worker, decoding=False)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        from shared.ml.device import configure_threads

        configure_threads(threads)
        self.handlers: Mapping[Stage, Handler] = {Stage.FINE_TUNE: FineTune(context)}
        self.lane: LaneHandler | None = None

    def loaded_models(self) -> list[str]:
        """None: each shard makes its own."""
        return []

    def close(self) -> None:
        """Nothing to end."""


def make_pool(context: WorkerContext) -> FineTunePool:
    """The fine-tuning pool."""
    return FineTunePool(context)
