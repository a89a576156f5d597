"""What a pool does with a fit shard of an encoder that is trained on labels. No torch until there is one."""

import json
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shared.catalog import FittedEncoder
from shared.fine_tuning import FineTuneRequest
from shared.items import PlannedItem, Split
from shared.jobs.encoders import encoder_of
from shared.jobs.records import Finished, Lease
from shared.ml.extraction import Extraction
from shared.ml.fitting import FittedModel, slices_of, store_fitted
from shared.ml.models import download_model
from shared.queues import Modality
from shared.storage import keys
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.progress import JobProgress
from shared.worker.slices import read_slice


@dataclass(frozen=True)
class Parts:
    """The part of every item of the job that has an answer, by id; and those that train and judge this encoder."""

    splits: dict[str, Split]
    train: list[PlannedItem]
    validation: list[PlannedItem]


class TrainOnLabels:
    """Handler of the fit stage (see shared.worker.context.Handler) for encoders with a linear head on top of them."""

    def __init__(self, context: WorkerContext, modality: Modality, extraction: Extraction):
        self._context, self._modality, self._extraction = context, modality, extraction

    def load(self, lease: Lease, control: Control) -> None:
        """The model is loaded where it is trained: nobody else could use it."""

    def prepare(self, lease: Lease, control: Control) -> Parts:
        """Divides the job's items. Raises JobError (`too_few_items`)."""
        from shared.ml.splits import split_items

        specs = control.patiently(partial(slices_of, self._context, lease, self._modality))
        read = partial(read_slice, self._context.store)
        items = [item for spec in specs for item in control.patiently(partial(read, spec))]
        splits = split_items(items, _request(lease))

        def of(split: Split) -> list[PlannedItem]:
            return [i for i in items if splits.get(i.id) is split and getattr(i, self._modality.value) is not None]

        return Parts(splits, of(Split.TRAIN), of(Split.VALIDATION))

    def run(self, lease: Lease, prepared: Parts, control: Control) -> tuple[FittedModel, Parts]:
        """Trains; a shard that was begun before goes on from its newest checkpoint. Raises JobError."""
        from shared.ml.encoder_training import train_encoder

        spec = encoder_of(lease.schema, self._modality, self._context.catalog)
        progress = JobProgress(self._context, lease, control)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) if isinstance(spec, FittedEncoder) else None
            if isinstance(spec, FittedEncoder):
                download_model(self._context, spec, Path(name), control)
            fitted = train_encoder(
                spec,
                folder,
                _request(lease),
                prepared.train,
                prepared.validation,
                read=lambda encoder, items: self._extraction.read(lease, encoder, items, control),
                settings=self._context.settings.worker,
                progress=progress,
            )
        progress.flush()
        return fitted, prepared

    def store(self, lease: Lease, output: tuple[FittedModel, Parts], control: Control) -> Finished:
        """Writes the model, and the parts for whoever trains after this."""
        fitted, parts = output
        data = json.dumps(parts.splits, sort_keys=True).encode()
        store = self._context.store
        splits = control.patiently(lambda: store.put(keys.splits(lease.job_id), data, "application/json"))
        finished = store_fitted(self._context, lease, fitted, control)
        named = {"splits": {"key": splits.key, "sha256": splits.sha256}}
        return replace(finished, schema_update={**finished.schema_update, **named})


def _request(lease: Lease) -> FineTuneRequest:
    # Its items are in slices; where they were found does not matter any more.
    return FineTuneRequest.model_validate(lease.request | {"features": lease.job_id, "input": None})
