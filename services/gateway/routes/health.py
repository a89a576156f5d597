"""For those that watch this service: alive, ready, metrics. No key is needed, and nothing but counts is told."""

from collections.abc import Callable

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from redis import Redis
from sqlalchemy import text

from services.gateway import examples
from services.gateway.deps import Services, ServicesDep
from services.gateway.metrics import Metrics
from services.gateway.openapi import answers, errors
from shared.errors import NotFoundError
from shared.observability import get_logger
from shared.schemas import Readiness

log = get_logger(__name__)

#: Each of the servers must answer within this time.
_PATIENCE_SECONDS = 2.0

_READY = {"status": "ready", "postgres": True, "s3": True, "redis": True}

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is it alive?", responses=answers({"status": "ok"}))
async def healthz() -> dict[str, str]:
    """Answers as long as the process works; asks nobody else."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Is it ready?",
    response_model=Readiness,
    responses={
        **answers(_READY),
        503: {
            "model": Readiness,
            "description": "Postgres or S3 does not answer",
            "content": {"application/json": {"example": {**_READY, "status": "unavailable", "postgres": False}}},
        },
    },
)
async def readyz(services: ServicesDep) -> Response:
    """Ready when Postgres and S3 answer within two seconds. Redis is reported, and not required: jobs do without."""
    found = {"postgres": False, "s3": False, "redis": False}

    async def ask(name: str, question: Callable[[Services], None]) -> None:
        with anyio.move_on_after(_PATIENCE_SECONDS):
            try:
                await anyio.to_thread.run_sync(question, services, abandon_on_cancel=True)
                found[name] = True
            except Exception as error:  # noqa: BLE001  # whatever it is, this server does not answer
                log.warning("not ready", server=name, error=str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "postgres", _ask_postgres)
        tasks.start_soon(ask, "s3", _ask_s3)
        tasks.start_soon(ask, "redis", _ask_redis)
    ready = found["postgres"] and found["s3"]
    answer = Readiness(status="ready" if ready else "unavailable", **found)
    return JSONResponse(answer.model_dump(), status_code=200 if ready else 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Requests, queues and jobs, in the Prometheus text format",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": examples.METRICS}},
        },
        **errors(500),
    },
)
def metrics(request: Request) -> Response:
    """Counts only: requests by route and status, depth and age of the queues, jobs by status."""
    registry: Metrics = request.app.state.metrics
    return Response(registry.render(), media_type=CONTENT_TYPE_LATEST)


def _ask_postgres(services: Services) -> None:
    with services.sessions() as session:
        session.execute(text("SELECT 1"))


def _ask_s3(services: Services) -> None:
    try:
        services.store.size("readyz")
    except NotFoundError:
        return  # an answer is all that is wanted


def _ask_redis(services: Services) -> None:
    url = services.settings.redis_url.get_secret_value()
    with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as redis:
        redis.ping()
