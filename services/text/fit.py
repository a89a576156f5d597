"""Fitting Word2Vec on the texts of a whole job: the barrier before its text shards."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from services.text.preprocess import decode
from shared.errors import ItemError
from shared.jobs.records import Finished, Lease
from shared.ml.encoders.word2vec import VECTORS, FitOptions, Word2VecEncoder, fit
from shared.ml.fitting import FittedModel, slices_of, store_fitted
from shared.preprocessing import TextPreprocessing
from shared.queues import Modality
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.slices import read_slice

SEED = 0


class FitWord2Vec:
    """Handler of the fit stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext):
        self._context = context

    def load(self, lease: Lease, control: Control) -> None:
        """There is no model to load."""

    def prepare(self, lease: Lease, control: Control) -> list[dict[str, Any]]:
        """The specs of the job's text shards: where the slices are. The texts themselves are streamed by `run`."""
        return control.patiently(lambda: slices_of(self._context, lease, Modality.TEXT))

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
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            return FittedModel(files, VECTORS, fingerprint, spec)

    def store(self, lease: Lease, output: FittedModel, control: Control) -> Finished:
        """Writes the model; the text shards find it through the job's schema."""
        return store_fitted(self._context, lease, output, control)

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
