"""Predictions: what a model says of a few items, at once."""

from typing import Annotated

from fastapi import APIRouter, Body, Request

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.predicting import predict
from shared.predictions import PredictionList, PredictionRequest

router = APIRouter(tags=["predictions"], responses=COMMON_ERRORS)


@router.post(
    "/v1/predictions",
    summary="Predict a few items at once",
    responses=answers(examples.PREDICTIONS, 400, 404, 413, 429, 504),
)
async def create_predictions(
    http_request: Request,
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[PredictionRequest, Body(openapi_examples=examples.PREDICTION_REQUESTS)],
) -> PredictionList:
    """Up to 64 items, encoded as those were that the model was trained on; more are a job of type `predict`.

    Pictures and sounds are `data:` URIs, of 1 MiB together, or the ids of uploaded files. A modality that cannot be
    read is an error of its item, and the prediction does without it. No job is made, and an answer that does not come
    in time (504) is lost; the first request for a model that no worker has in memory waits until it is loaded.
    """
    return await predict(services, http_request.app.state.lanes, caller.tenant, request)
