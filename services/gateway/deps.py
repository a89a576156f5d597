"""What the routes have at hand: settings and clients of the process, and who is calling."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request

from shared.broker import make_broker, send_hints
from shared.catalog import Catalog, load_catalog
from shared.db import Sessions, make_engine, make_sessions
from shared.language_models import LanguageModels, load_language_models
from shared.queues import Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore, make_store

#: Postgres connections kept open; as many again under load.
POOL_SIZE = 16


@dataclass(frozen=True)
class Services:
    """What the gateway stands on, built once by its entry point."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    catalog: Catalog
    language_models: LanguageModels
    hint: Callable[[Iterable[Queue]], None]


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """The clients of this process; closed at the end. Connects to nothing yet."""
    engine = make_engine(settings.database_url.get_secret_value(), pool_size=POOL_SIZE, application="trivium-gateway")
    broker = make_broker(settings)
    try:
        yield Services(
            settings=settings,
            sessions=make_sessions(engine),
            store=make_store(settings),
            catalog=load_catalog(settings.encoders_file),
            language_models=load_language_models(settings.language_models_file),
            hint=lambda queues: send_hints(broker, queues),
        )
    finally:
        engine.dispose()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]

Limit = Annotated[int, Query(ge=1, le=1000, description="how many entries at most")]
After = Annotated[
    str | None, Query(max_length=300, description="the `last_id` of the part before: entries from behind it on")
]
