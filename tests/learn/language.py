"""What tuning a language model is worth: zero-shot, soft prompt and LoRA on the same items, through real jobs.

Emoji of five groups are told apart from their words, from picture and words, and from voice and words. Every cell is
trained on 120 items, three times: the seed draws training items and weights; test items are the same for all. Where
there is no GPU, soft prompts are trained on words only.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.local.stack import Stack
from services.client.client import Client
from services.client.demo.sample import Sample
from services.finetune.language.labels import label_of
from shared.language_models import DEFAULT_LANGUAGE_MODEL
from shared.prompts import labels_of_words
from shared.schemas import JobStatus
from tests.learn.intervals import bootstrap, paired_bootstrap
from tests.learn.results import Result

Floats = NDArray[np.float64]

NAME = "language"
SEEDS = 3
#: What the groups are called in prompts and answers.
WORDS = {
    "Animals & Nature": "animal",
    "Flags": "flag",
    "Food & Drink": "food",
    "Smileys & Emotion": "face",
    "Travel & Places": "place",
}
#: Items of each group.
PER_GROUP = {"train": 24, "validation": 6, "test": 12}
#: What is seen of an item.
SEEN = {"text": "{text}", "image+text": "{image}{text}", "audio+text": "{audio}{text}"}
BASE, ZERO_SHOT, SOFT, LORA = "base", "zero-shot", "soft-prompt", "lora"
_ENCODERS = {"text": None, "image": "mobilenet_v2", "audio": "speaker"}
_EPOCHS = {"epochs": 3, "projector_epochs": 2, "patience": 3, "precision": "fp32", "projector_learning_rate": 2e-3}
#: Soft prompts learn slowly, from few numbers.
_TRAINING = {
    LORA: {**_EPOCHS, "adapter": "lora", "learning_rate": 1e-3},
    SOFT: {**_EPOCHS, "adapter": "prompt", "epochs": 6},
}
_ENVIRONMENT = {"TRIVIUM_PRECISION": "fp32", "OMP_WAIT_POLICY": "PASSIVE"}


def tuning(*, seeds: int = SEEDS) -> Iterator[Result]:
    """The accuracy of every cell on test items, and the differences that matter."""
    sample = Sample.read()
    right: dict[tuple[str, str], list[Floats]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="trivium-learn-") as folder,
        Stack(Path(folder, "stack"), durable=False, replicas={"text": 0}, environment=_ENVIRONMENT) as stack,
    ):
        stack.wait_ready()
        with Client(stack.gateway_url) as client:
            for seed in range(seeds):
                items = client.files.upload(_archive(sample, seed, Path(folder, f"items-{seed}.tar"))).id
                for cell, scores in _cells(client, items, seed, Path(folder)):
                    right.setdefault(cell, []).append(scores)
    scores = {cell: np.stack(rows) for cell, rows in right.items()}
    for (seen, method), rows in scores.items():
        yield Result(f"{NAME}/{seen}/{method}", "accuracy", **asdict(bootstrap(rows)), n=rows.shape[1])
    yield from _differences(scores)


def _cells(client: Client, items: str, seed: int, folder: Path) -> Iterator[tuple[tuple[str, str], Floats]]:
    """Whether each test item was answered rightly, by what was seen and by which model."""
    for seen, template in SEEN.items():
        methods = [LORA, SOFT] if seen == "text" or torch.cuda.is_available() else [LORA]
        for method in methods:
            training = {**_TRAINING[method], "seed": seed}
            answers = _answers(client, items, template, folder, method="instruction", training=training)
            yield (seen, method), _right([one["tuned"] for one in answers], answers)
            if method == LORA:
                yield (seen, BASE), _right([one["base"] for one in answers], answers)
            print(f"{NAME}: {seen}, {method}, seed {seed}", file=sys.stderr, flush=True)
    chosen = _answers(client, items, SEEN["text"], folder, method="prompt", how="hard")
    yield ("text", ZERO_SHOT), np.array([one["prediction"] == one["label"] for one in chosen], np.float64)


def _answers(client: Client, items: str, template: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """What a job's model says of the test items. Raises RuntimeError if the job does not succeed."""
    prompt = {"template": f"Which kind of thing is it?\n{template}", "verbalizers": {k: [v] for k, v in WORDS.items()}}
    options |= {"language_model": DEFAULT_LANGUAGE_MODEL, "encoders": _ENCODERS, "prompt": prompt}
    job = client.jobs.wait(client.fine_tune(items, **options).id)
    if job.status is not JobStatus.SUCCEEDED:
        raise RuntimeError(f"{template}: {job.status.value}: {job.error}")
    [model] = job.models
    lines = (client.models.download(model, folder / model) / "test_items.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def _right(said: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> Floats:
    words = labels_of_words({label: [word] for label, word in WORDS.items()})
    wanted = [words[one["answer"]] for one in answers]
    return np.array([label_of(text, words) == label for text, label in zip(said, wanted, strict=True)], np.float64)


def _differences(scores: Mapping[tuple[str, str], Floats]) -> Iterator[Result]:
    """Tuned against base; LoRA against the other methods on words; what picture and voice add to words."""
    pairs = [((seen, LORA), (seen, BASE)) for seen in SEEN]
    pairs += [((seen, SOFT), (seen, BASE)) for seen in SEEN if (seen, SOFT) in scores]
    pairs += [(("text", LORA), ("text", other)) for other in (ZERO_SHOT, SOFT)]
    pairs += [((seen, LORA), ("text", LORA)) for seen in SEEN if seen != "text"]
    for first, second in pairs:
        interval = paired_bootstrap(scores[first], scores[second])
        name = f"{NAME}/{'/'.join(first)} - {'/'.join(second)}"
        yield Result(name, "accuracy difference", **asdict(interval), n=scores[first].shape[1])


def _archive(sample: Sample, seed: int, path: Path) -> Path:
    """So many items of each group and split that have everything, as a tar that a job takes."""
    everything = {"text", "image", "audio"}
    fit = [i for i in sample.items if everything <= i.keys() and i["label"] in WORDS]
    fit.sort(key=lambda item: (item["split"], item["label"], item["id"]))
    items = []
    for (split, _), among in groupby(fit, key=lambda item: (item["split"], item["label"])):
        drawn = random.Random(0 if split == "test" else seed).sample(list(among), PER_GROUP[split])
        items += [{name: item[name] for name in (*everything, "id", "label", "split")} for item in drawn]
    return sample.write(items, path)
