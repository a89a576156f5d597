"""Classifiers out of dual encoders: an item is of the class whose description its vector is most similar to.

Radford et al., "Learning transferable visual models from natural language supervision" (ICML 2021). The logits
scale·Σ_m cos(item_m, class) are a linear layer on the weighted fusion, so that the classifier is a trained model like
any other, with predictions, contributions and lanes.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.finetune.candidates import Candidate
from services.finetune.library import Network
from services.finetune.modelling import Run, Trained
from services.finetune.settings import Settings
from services.finetune.training import Fit
from shared.errors import ItemError, JobError
from shared.ml.encoders.base import Encoder
from shared.ml.encoders.batching import encode_all
from shared.ml.multimodal import MultimodalConfig, MultimodalModel
from shared.ml.trained import Member, Task, TrainedConfig, TrainedModel, save_trained
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.schemas import FusionMethod

#: Of a classifier that nothing was trained of.
_UNTRAINED = Settings(hidden=0, dropout=0.0, modality_dropout=0.0, epochs=0)


def class_vectors(
    encoder: Encoder, prompt: PromptTemplate, classes: Sequence[str], check: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """Float32 [classes, d] of length 1: of each class the mean direction of all its texts (prompt ensembling).

    Raises what `check` raises, before each batch, and JobError (`unsuitable_class`) if a text cannot be encoded.
    """

    def before_batch() -> bool:
        check()
        return False

    texts = [prompt.class_texts(label) for label in classes]
    try:
        prepared = [encoder.preprocess(text) for several in texts for text in several]
        vectors, errors = encode_all(encoder, prepared, before_batch=before_batch)
        for error in errors.values():
            raise error
    except ItemError as error:
        message = f"The name of a class cannot be read by {encoder.spec.id}: {error.message}"
        raise JobError(message, code="unsuitable_class", param="prompt.verbalizers") from error
    rows = iter(np.asarray(vectors, np.float64))
    means = [np.mean([_unit(next(rows)) for _ in several], axis=0) for several in texts]
    return np.stack([_unit(mean) for mean in means]).astype(np.float32)


def zero_shot(name: str, run: Run, vectors: NDArray[np.float32], scale: float) -> Trained:
    """The classifier whose classes are these vectors, [classes, d], on the modalities of a run."""
    config = similarity_config(run.data.dimensions, len(vectors))
    state = similarity_state(config, torch.from_numpy(vectors), scale)
    fit = Fit(state, loss=math.nan, epoch=0, history=[], seconds=0.0)
    return judged(name, run, config, fit, _UNTRAINED)


def similarity_config(dimensions: Mapping[Modality, int], classes: int) -> MultimodalConfig:
    """Vectors of length 1 side by side, and a linear layer."""
    return MultimodalConfig(
        dimensions=dict(dimensions), outputs=classes, hidden=0, dropout=0, modality_dropout=0,
        fusion=FusionMethod.WEIGHTED,
    )  # fmt: skip


def similarity_state(config: MultimodalConfig, vectors: Tensor, scale: float) -> dict[str, Tensor]:
    """The state of a model of this configuration that compares items with class vectors [classes, d] of length 1."""
    model = MultimodalModel(config)
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.weight.copy_(scale * vectors.repeat(1, len(config.dimensions)))
        model.head.bias.zero_()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def judged(name: str, run: Run, config: MultimodalConfig, fit: Fit, settings: Settings) -> Trained:
    """A classifier of one network as the other recipes leave it, with its loss on validation items."""
    member = Member(name=name, weight=1.0, model=config)
    trained = TrainedConfig(
        task=Task.SINGLE_LABEL, classes=run.problem.classes, prior=run.prior.tolist(), members=[member]
    )  # fmt: skip
    files = save_trained(trained, [fit.state])
    model = TrainedModel.load(files, run.outside.device)
    items = run.data.take(run.parts.validation)
    loss = run.problem.loss(model.outputs(items.vectors, items.present), run.parts.validation)
    network = Network(
        Candidate(name, FusionMethod.WEIGHTED, settings, seed=run.request.training.seed),
        config,
        Fit(fit.state, loss, fit.epoch, fit.history, fit.seconds),
    )
    return Trained(model, files, [network], [1.0], [])


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / max(float(np.linalg.norm(vector)), np.finfo(np.float64).tiny)
