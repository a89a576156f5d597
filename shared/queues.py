"""The queues and the stages: the one place that names them.

A *stage* is what a shard does, a *queue* is the worker pool that takes it. Most stages have the queue of
the same name; `plan` runs in the dispatcher, `fit` in the pool of the modality it fits, `predict` and
`index` in the fusion pool.
"""

from enum import StrEnum


class Modality(StrEnum):
    """What an item can hold, in the order in which fusion concatenates them."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"


class Stage(StrEnum):
    """The steps of a job."""

    PLAN = "plan"
    FIT = "fit"
    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    FUSION = "fusion"
    FINE_TUNE = "fine_tune"
    PREDICT = "predict"
    INDEX = "index"
    GENERATE = "generate"


#: The stages that make something of each part of a feature set, behind its fusion.
READING = frozenset({Stage.PREDICT, Stage.GENERATE, Stage.INDEX})


class Queue(StrEnum):
    """One per worker pool; also the name of the Celery queue that carries its hints."""

    PLAN = "plan"
    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    FUSION = "fusion"
    FINE_TUNE = "fine_tune"
    GENERATE = "generate"


#: Which service consumes each queue: exactly one, checked against `services/` and the compose file by a test. A service
#: may have several pools, each in processes of its own.
CONSUMERS: dict[Queue, str] = {
    Queue.PLAN: "dispatcher",
    Queue.TEXT: "text",
    Queue.IMAGE: "image",
    Queue.AUDIO: "audio",
    Queue.FUSION: "fusion",
    Queue.FINE_TUNE: "finetune",
    Queue.GENERATE: "finetune",
}

#: Name of the Celery task that a hint calls in each pool.
HINT_TASK = "trivium.hint"


def queue_of(stage: Stage, modality: Modality | None = None) -> Queue:
    """The queue whose workers run `stage`; `fit` needs the modality it fits."""
    if stage is Stage.FIT:
        if modality is None:
            raise ValueError("a fit stage belongs to a modality")
        return Queue(modality.value)
    return Queue.FUSION if stage in {Stage.PREDICT, Stage.INDEX} else Queue(stage.value)
