"""Trained models without training: for tests of what is done with them."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch

from shared.db import Sessions
from shared.ids import new_id
from shared.jobs.models import Model
from shared.language_tuning import Adapter, LanguageTraining
from shared.ml.language.adapters import ADAPTER, PeftAdapter
from shared.ml.language.loading import LanguageModel
from shared.ml.language.soft_tokens import Projector, ProjectorConfig
from shared.ml.language.tuned import TunedConfig, TunedLanguageModel
from shared.ml.multimodal import MultimodalConfig, MultimodalModel
from shared.ml.trained import WEIGHTS, Member, Task, TrainedConfig, save_trained
from shared.preprocessing import Preprocessing
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.schemas import FusionMethod
from shared.storage import keys
from shared.storage.objects import ObjectStore


def add_trained_model(
    sessions: Sessions,
    store: ObjectStore,
    encoders: Mapping[Modality, tuple[str, int]],
    *,
    classes: int = 3,
    tenant: str = "default",
    spec: Mapping[str, Any] | None = None,
) -> str:
    """Registers a classifier with random weights (a regressor, if it has no classes) as a fine_tune job would.

    `encoders` are an id and a dimension for each modality; `spec` goes into the row's. Returns the model's id.
    """
    names = [f"class-{i}" for i in range(classes)]
    config = TrainedConfig(
        task=Task.SINGLE_LABEL if classes else Task.REGRESSION,
        classes=names,
        prior=[1 / classes] * classes if classes else [0.5],
        members=[
            Member(
                name="concat",
                weight=1,
                model=MultimodalConfig(
                    dimensions={m: dimension for m, (_, dimension) in encoders.items()}, outputs=classes or 1, hidden=8
                ),
            )
        ],
    )
    torch.manual_seed(0)
    files = save_trained(config, [MultimodalModel(config.members[0].model).state_dict()])
    kind = "classifier" if classes else "regressor"
    return _register(sessions, store, encoders, files, kind=kind, dimension=8 * len(encoders), tenant=tenant,
                     fusion="concat", classes=names, spec=spec)  # fmt: skip


def add_aligning_model(
    sessions: Sessions,
    store: ObjectStore,
    encoders: Mapping[Modality, tuple[str, int]],
    *,
    dimension: int = 16,
    tenant: str = "default",
) -> str:
    """Registers a model of random linear projections into one space, as an `align` job would. Returns its id."""
    network = MultimodalConfig(
        dimensions={m: d for m, (_, d) in encoders.items()}, outputs=None, hidden=0,
        fusion=FusionMethod.ALIGN, parameters={"dimension": dimension},
    )  # fmt: skip
    config = TrainedConfig(task=Task.ALIGN, members=[Member(name="contrast", weight=1, model=network)])
    torch.manual_seed(0)
    files = save_trained(config, [MultimodalModel(network).state_dict()])
    return _register(sessions, store, encoders, files, kind="align", dimension=dimension, tenant=tenant,
                     fusion="align", classes=[], spec=None)  # fmt: skip


def _register(
    sessions: Sessions,
    store: ObjectStore,
    encoders: Mapping[Modality, tuple[str, int]],
    files: Mapping[str, bytes],
    *,
    kind: str,
    dimension: int,
    tenant: str,
    fusion: str,
    classes: list[str],
    spec: Mapping[str, Any] | None,
) -> str:
    id, token = new_id("model"), uuid4()
    stored = {name: store.put(keys.model(id, token, name), data) for name, data in files.items()}
    row = Model(
        id=id,
        tenant=tenant,
        kind=kind,
        dimension=dimension,
        fingerprint=stored[WEIGHTS].sha256,
        key=stored[WEIGHTS].key,
        sha256=stored[WEIGHTS].sha256,
        spec={
            "loader": "fine_tuned",
            "files": {name: {"key": o.key, "sha256": o.sha256, "bytes": o.bytes} for name, o in stored.items()},
            "preprocessing": Preprocessing().model_dump(mode="json"),
            "fine_tuned": {
                "encoders": {m.value: encoder for m, (encoder, _) in encoders.items()},
                "fusions": [fusion],
                "classes": classes,
                "multi_label": False,
                "metrics": {},
            },
            **(spec or {}),
        },
    )
    with sessions.begin() as session:
        session.add(row)
    return id


def tune_language_model(
    base: LanguageModel,
    dimensions: Mapping[Modality, int],
    *,
    labels: Sequence[str] = (),
    prompt: PromptTemplate | None = None,
    image_encoder: str | None = None,
    seed: int = 0,
) -> TunedLanguageModel:
    """A LoRA adapter with random weights on a language model, and a projector for vectors of each of the dimensions.

    `image_encoder`: of a model that reads pictures itself, its own vision tower.
    """
    torch.manual_seed(seed)
    adapter = PeftAdapter.new(base.model, LanguageTraining(lora_rank=2))
    with torch.no_grad():
        for _, parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    projectors = {
        m: ProjectorConfig(dimension=d, tokens=2, embedding=base.hidden, hidden=8) for m, d in dimensions.items()
    }
    config = TunedConfig(
        language_model=base.spec.id, fingerprint=base.fingerprint, adapter=Adapter.LORA, projectors=projectors,
        prompt=prompt, labels=list(labels), image_encoder=image_encoder,
    )  # fmt: skip
    built = {m.value: Projector(p, base.embedding_norm) for m, p in projectors.items()}
    return TunedLanguageModel(base, config, adapter, built)


def add_language_model(
    sessions: Sessions,
    store: ObjectStore,
    model: TunedLanguageModel,
    encoders: Mapping[Modality, str],
    *,
    tenant: str = "default",
) -> str:
    """Registers a tuned language model as a fine_tune job would; returns its id."""
    id, token = new_id("model"), uuid4()
    stored = {name: store.put(keys.model(id, token, name), data) for name, data in model.files().items()}
    weights = stored[ADAPTER]
    row = Model(
        id=id,
        tenant=tenant,
        kind="instruction",
        dimension=model.base.hidden,
        fingerprint=weights.sha256,
        key=weights.key,
        sha256=weights.sha256,
        spec={
            "loader": "fine_tuned",
            "files": {name: {"key": o.key, "sha256": o.sha256, "bytes": o.bytes} for name, o in stored.items()},
            "preprocessing": Preprocessing().model_dump(mode="json"),
            "fine_tuned": {
                "encoders": {m.value: encoder for m, encoder in encoders.items()},
                "fusions": [],
                "classes": model.config.labels,
                "multi_label": False,
                "metrics": {},
            },
        },
    )
    with sessions.begin() as session:
        session.add(row)
    return id
