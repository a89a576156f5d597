"""The gateway: HTTP in, rows and hints out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from services.gateway.buckets import Buckets
from services.gateway.deps import Services
from services.gateway.errors import add_error_handlers
from services.gateway.metrics import Metrics
from services.gateway.middleware import BodyLimitMiddleware, RateLimitMiddleware, RequestMiddleware
from services.gateway.openapi import TAGS
from services.gateway.routes import (
    batches,
    chat,
    embeddings,
    files,
    fine_tuning,
    health,
    jobs,
    keys,
    models,
    predictions,
    prompts,
    results,
    search,
    workers,
)
from shared.lanes.client import LaneClient
from shared.version import trivium_version

#: Requests and uploads that are worked on at the same time.
THREADS, UPLOADS = 64, 16

_DESCRIPTION = """Turns text, images and audio into features and fuses them.

A *job* takes *items*, inline or from a manifest, through encoders and fusion to a feature set. What was accepted (202)
is never lost. Errors have one shape, `{"error": {"message", "type", "code", "param"}}`; codes are stable. How many
requests a key may still make is in each answer: `RateLimit-Limit`, `RateLimit-Remaining`, and `RateLimit-Reset`, the
seconds until all may be made again."""


def create_app(services: Services) -> FastAPI:
    """The ASGI application on these services."""
    app = FastAPIOffline(  # FastAPI whose /docs fetches nothing from elsewhere
        title="Trivium",
        version=trivium_version(),
        description=_DESCRIPTION,
        openapi_tags=TAGS,
        redirect_slashes=False,
        redoc_url=None,
        static_url="/docs/static",
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.services = services
    app.state.metrics = Metrics(services.sessions)
    app.state.upload_limiter = anyio.CapacityLimiter(UPLOADS)
    redis_url, limits = services.settings.redis_url.get_secret_value(), services.settings.limits
    app.state.buckets = Buckets(redis_url)
    app.state.lanes = LaneClient(redis_url, limits.lane_requests, app.state.metrics.observe_lane)
    add_error_handlers(app)
    app.add_middleware(BodyLimitMiddleware, limit=limits.json_bytes, uploads=files.UPLOAD_PATH)
    app.add_middleware(RateLimitMiddleware, buckets=app.state.buckets, limits=limits)
    app.add_middleware(RequestMiddleware, metrics=app.state.metrics)  # the last one added is the outermost
    for routes in (
        files, jobs, results, predictions, search, embeddings, chat, batches, fine_tuning, models, prompts, workers,
        keys, health,
    ):  # fmt: skip
        app.include_router(routes.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield
    await app.state.buckets.close()
    await app.state.lanes.close()
