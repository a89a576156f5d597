"""The fit stage: what a job makes of an encoder before it encodes anything with it becomes a model of the registry."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select

from shared.catalog import EncoderSpec, FittedEncoder, StoredFile
from shared.fine_tuning import TrainEncoder
from shared.ids import new_id
from shared.jobs.encoders import encoder_of, in_schema
from shared.jobs.models import Shard
from shared.jobs.records import Finished, Lease, NewModel
from shared.queues import Modality
from shared.storage import keys
from shared.worker.context import Handler, WorkerContext
from shared.worker.control import Control


@dataclass(frozen=True)
class FittedModel:
    """A model's files, the one that is its weights, and what the registry wants to know of it."""

    files: dict[str, bytes]
    weights: str
    fingerprint: str
    spec: EncoderSpec


class Fit:
    """Handler of the fit stage (see shared.worker.context.Handler): the one that trains encoders on labels, or that of
    the encoder's loader, which fits it in its own way."""

    def __init__(self, context: WorkerContext, modality: Modality, training: Handler, by_loader: Mapping[str, Handler]):
        self._context, self._modality = context, modality
        self._training, self._by_loader = training, by_loader

    def load(self, lease: Lease, control: Control) -> None:
        """As the chosen handler does it, and so are the other steps."""
        self._chosen(lease).load(lease, control)

    def prepare(self, lease: Lease, control: Control) -> Any:
        """See `load`."""
        return self._chosen(lease).prepare(lease, control)

    def run(self, lease: Lease, prepared: Any, control: Control) -> Any:
        """See `load`."""
        return self._chosen(lease).run(lease, prepared, control)

    def store(self, lease: Lease, output: Any, control: Control) -> Any:
        """See `load`."""
        return self._chosen(lease).store(lease, output, control)

    def _chosen(self, lease: Lease) -> Handler:
        spec = encoder_of(lease.schema, self._modality, self._context.catalog)
        how = TrainEncoder(lease.request.get("train_encoder", TrainEncoder.FROZEN))
        return self._training if spec.is_trained(how) else self._by_loader[spec.loader]


def slices_of(context: WorkerContext, lease: Lease, modality: Modality) -> list[dict[str, Any]]:
    """The specs of the job's extraction shards of this modality: where the slices are."""
    with context.sessions() as session:
        return list(
            session.scalars(
                select(Shard.spec)
                .where(Shard.job_id == lease.job_id, Shard.stage == modality.value)
                .order_by(Shard.index)
            )
        )


def store_fitted(context: WorkerContext, lease: Lease, fitted: FittedModel, control: Control) -> Finished:
    """Writes a model's files; the extraction shards that wait for it find them through the job's schema."""
    model_id, spec = new_id("model"), fitted.spec
    stored = {
        name: control.patiently(partial(context.store.put, keys.model(model_id, lease.token, name), data))
        for name, data in sorted(fitted.files.items())
    }
    files = {name: StoredFile(key=object.key, sha256=object.sha256) for name, object in stored.items()}
    described = spec.model_dump(mode="json", include=set(EncoderSpec.model_fields))
    encoder = FittedEncoder.model_validate({**described, "model": model_id, "files": files})
    return Finished(
        lease,
        stored[fitted.weights],
        items_done=lease.items,
        schema_update=in_schema({spec.modality: encoder}),
        model=NewModel(
            id=model_id,
            kind="fitted_encoder",
            modality=spec.modality,
            dimension=spec.dimension,
            fingerprint=fitted.fingerprint,
            spec={**described, "files": {name: file.model_dump() for name, file in files.items()}},
        ),
    )
