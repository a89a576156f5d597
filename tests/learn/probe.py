"""The linear probe by which the noise of the digits dataset was set: one modality at a time, never a fusion."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.finetune.data import Dataset
from shared.schemas import Split
from tests.learn.intervals import bootstrap
from tests.learn.results import Result


def probe(name: str, data: Dataset) -> Iterator[Result]:
    """Of each modality: how often logistic regression, trained on the items for training, is right on validation."""
    labels, splits = np.array([labels[0] for labels in data.labels]), np.array(data.splits)
    for modality, rows in data.vectors.items():
        train, judges = ((splits == split) & data.present[modality] for split in (Split.TRAIN, Split.VALIDATION))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        right = model.fit(rows[train], labels[train]).predict(rows[judges]) == labels[judges]
        interval = bootstrap(right[None].astype(np.float64))
        yield Result(f"{name}/{modality.value}", "validation accuracy, linear probe", **asdict(interval), n=len(right))
