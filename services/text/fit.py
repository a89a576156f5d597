"""Fitting Word2Vec on the texts of a whole job: the barrier before its text shards."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from services.text.preprocess import decode
from shared.catalog import EncoderSpec
from shared.errors import ItemError
from shared.ids import new_id
from shared.jobs.models import Shard
from shared.jobs.records import Finished, Lease, NewModel
from shared.ml.encoders.word2vec import FitOptions, Word2VecEncoder, fit
from shared.preprocessing import TextPreprocessing
from shared.queues import Modality, Stage
from shared.storage import keys
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.slices import read_slice

SEED = 0


@dataclass(frozen=True)
class FittedModel:
    """A model's files, and what the registry wants to know of it."""

    files: dict[str, bytes]
    fingerprint: str
    spec: EncoderSpec


class FitWord2Vec:
    """Handler of the fit stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext):
        self._context = context

    def load(self, lease: Lease, control: Control) -> None:
        """There is no model to load."""

    def prepare(self, lease: Lease, control: Control) -> list[dict[str, Any]]:
        """The specs of the job's text shards: where the slices are. The texts themselves are streamed by `run`."""
        return control.patiently(lambda: self._shard_specs(lease))

    def run(self, lease: Lease, prepared: list[dict[str, Any]], control: Control) -> FittedModel:
        """Fits; cancellation stops it within a pass over the corpus."""
        spec = self._context.catalog.resolve(Modality.TEXT, lease.schema["encoders"][Modality.TEXT]["id"])
        model = fit(
            self._texts(lease, prepared, control),
            dimension=spec.dimension,
            seed=SEED,
            preprocessing=TextPreprocessing.model_validate(lease.request["preprocessing"]["text"]),
            options=FitOptions.model_validate(spec.options),
            on_epoch=control.check,
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model.save(folder)
            fingerprint = Word2VecEncoder(spec, folder).fingerprint
            return FittedModel({path.name: path.read_bytes() for path in folder.iterdir()}, fingerprint, spec)

    def store(self, lease: Lease, output: FittedModel, control: Control) -> Finished:
        """Writes the model's files; the text shards find them through the job's schema."""
        model_id = new_id("model")
        stored = {
            name: control.patiently(partial(self._context.store.put, keys.model(model_id, lease.token, name), data))
            for name, data in sorted(output.files.items())
        }
        files = {name: {"key": object.key, "sha256": object.sha256} for name, object in stored.items()}
        spec = {**output.spec.model_dump(mode="json"), "files": files}
        return Finished(
            lease,
            stored["vectors.safetensors"],
            items_done=lease.items,
            schema_update={"fitted_models": {Modality.TEXT.value: {"id": model_id, "files": files}}},
            model=NewModel(
                id=model_id,
                kind="fitted_encoder",
                modality=Modality.TEXT,
                dimension=output.spec.dimension,
                fingerprint=output.fingerprint,
                spec=spec,
            ),
        )

    def _shard_specs(self, lease: Lease) -> list[dict[str, Any]]:
        with self._context.sessions() as session:
            return list(
                session.scalars(
                    select(Shard.spec)
                    .where(Shard.job_id == lease.job_id, Shard.stage == Stage.TEXT.value)
                    .order_by(Shard.index)
                )
            )

    def _texts(self, lease: Lease, specs: list[dict[str, Any]], control: Control) -> Iterator[str]:
        options = {**lease.request["preprocessing"]["text"], "max_bytes": self._context.settings.limits.text_bytes}
        for spec in specs:
            control.check()
            for item in control.patiently(partial(read_slice, self._context.store, spec)):
                try:
                    text = decode(item.text or "", options)
                except ItemError:
                    continue  # it is reported where it is encoded
                yield text
