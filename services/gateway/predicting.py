"""What a model says of a few items, while the caller waits: the modalities' lanes, then that of the model."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from services.gateway.deps import Services
from services.gateway.interactive import Asking, Contents, encode, locate
from services.gateway.sources import find_encoders, find_predictor
from shared.errors import DeadlineError
from shared.items import Item
from shared.lanes.client import LaneClient
from shared.lanes.messages import Encoded, Predicted, PredictRows, Rows
from shared.predictions import Prediction, PredictionError, PredictionList, PredictionRequest
from shared.queues import Modality

_NOTHING = PredictionError(
    modality=None,
    code="no_usable_modality",
    message="The item has nothing that the model looks at, or none of it could be used; see its other errors.",
)


@dataclass(frozen=True)
class _Asked:
    """A request with what the tables say of it."""

    asking: Asking
    contents: Contents
    classes: list[str]


async def predict(services: Services, lanes: LaneClient, tenant: str, request: PredictionRequest) -> PredictionList:
    """Encodes the items, each modality at the same time, and predicts from the vectors of those that have any.

    Raises NotFoundError (`model_not_found`), InvalidRequestError, TooLargeError, and what the lanes raise.
    """
    deadline = time.time() + request.timeout_seconds
    asked = await _in_time(partial(_look_up, services, tenant, request, deadline), deadline)
    encoded = await encode(lanes, asked.contents, asked.asking)
    vectors, mask = _arrange(encoded, asked.contents, len(request.items))
    usable = np.flatnonzero(np.logical_or.reduce([np.zeros(len(request.items), np.bool_), *mask.values()]))
    said: Mapping[int, Prediction] = {}
    if len(usable):
        rows = PredictRows(
            vectors={m: Rows.of(array[usable]) for m, array in vectors.items()},
            mask={m: present[usable].tolist() for m, present in mask.items()},
            contributions=request.contributions,
        )
        predicted = await lanes.predict(request.model, rows, tenant=tenant, deadline=deadline)
        said = dict(zip(usable.tolist(), _entries(predicted, [request.items[i] for i in usable], asked), strict=True))
    data = [said.get(i) or Prediction(id=item.id, errors=[_NOTHING]) for i, item in enumerate(request.items)]
    for index, faults in asked.contents.faults.items():
        errors = [PredictionError(modality=m, code=fault.code, message=fault.message) for m, fault in faults.items()]
        data[index].errors = [*errors, *data[index].errors]
    return PredictionList(model=request.model, data=data)


async def _in_time(look_up: Callable[[], _Asked], deadline: float) -> _Asked:
    """Looks up in a thread, which is left to itself at the deadline. Raises DeadlineError."""
    try:
        async with asyncio.timeout(deadline - time.time()):
            return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
    except TimeoutError:
        raise DeadlineError("What the model needs could not be looked up in time. Try again.") from None


def _look_up(services: Services, tenant: str, request: PredictionRequest, deadline: float) -> _Asked:
    with services.sessions() as session:
        model = find_predictor(session, tenant, request.model)
        encoders = find_encoders(model, services.catalog)
        contents = locate(session, tenant, request.items, encoders, services.settings)
        asking = Asking(tenant, deadline, encoders, model.spec["preprocessing"])
        return _Asked(asking, contents, model.spec["fine_tuned"]["classes"])


def _arrange(
    encoded: Mapping[Modality, Encoded], contents: Contents, count: int
) -> tuple[dict[Modality, NDArray[np.float32]], dict[Modality, NDArray[np.bool_]]]:
    """Each modality's vectors [count, d] in the places of their items, and which items have one."""
    vectors: dict[Modality, NDArray[np.float32]] = {}
    mask: dict[Modality, NDArray[np.bool_]] = {}
    for modality, answer in encoded.items():
        rows = answer.vectors.array()
        places = np.array(list(contents.found[modality]))
        good = np.array([row not in answer.faults for row in range(len(places))], np.bool_)
        vectors[modality] = np.zeros((count, rows.shape[1]), np.float32)
        vectors[modality][places] = rows
        mask[modality] = np.zeros(count, np.bool_)
        mask[modality][places] = good
    return vectors, mask


def _entries(predicted: Predicted, items: Sequence[Item], asked: _Asked) -> list[Prediction]:
    entries = []
    for row, item in enumerate(items):
        entry = Prediction(id=item.id)
        if predicted.values is not None:
            entry.prediction = predicted.values[row]
        elif predicted.probabilities is not None:
            entry.prediction = predicted.labels[row]
            entry.probability = max(predicted.probabilities[row])
            entry.probabilities = dict(zip(asked.classes, predicted.probabilities[row], strict=True))
        if predicted.contributions is not None:
            entry.contributions = {m: values[row] for m, values in predicted.contributions.items()}
        entries.append(entry)
    return entries
