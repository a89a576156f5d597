"""The gateway behind uvicorn and a worker of each pool, in this process, with the limits that the corpus expects."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

import services.audio.tasks
import services.fusion.tasks
import services.image.tasks
import services.text.tasks
from services.dispatcher.plan import PlanJob
from services.gateway.app import create_app
from services.gateway.deps import open_services
from services.gateway.protocol import LimitedHeadProtocol
from shared.broker import make_broker
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.jobs.keys import create_key
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.testing.web import Website
from shared.testing.workers import Held
from shared.worker.context import Handler, Pool, WorkerContext
from shared.worker.loop import ShardLoop
from tests.corpus.archives import MEMBERS
from tests.corpus.items import LINE_BYTES, MEDIA_BYTES, TEXT_BYTES

#: From here URLs may be fetched; the rest of loopback stands for the house.
PUBLIC = "127.0.0.2"

ITEMS = 3000
ENCODERS = {"text": "hash-text", "image": "hash-image", "audio": "hash-audio"}


def environment(folder: Path, site: Website) -> dict[str, str]:
    """The platform's settings beside those of its servers."""
    file = folder / "encoders.json"
    hashing = [{"id": id, "modality": m, "dimension": 16, "loader": "hashing"} for m, id in ENCODERS.items()]
    file.write_text(json.dumps(hashing))
    return {
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_IDLE_POLL_SECONDS": "0.1",
        "TRIVIUM_DECODE_PROCESSES": "1",
        "TRIVIUM_MAX_LINE_BYTES": str(LINE_BYTES),
        "TRIVIUM_MAX_TEXT_BYTES": str(TEXT_BYTES),
        "TRIVIUM_MAX_MEDIA_BYTES": str(MEDIA_BYTES),
        "TRIVIUM_MAX_ARCHIVE_MEMBERS": str(MEMBERS),
        "TRIVIUM_MAX_ITEMS": str(ITEMS),
        "TRIVIUM_FETCH_URLS": "true",
        "TRIVIUM_FETCH_HTTP": "true",
        "TRIVIUM_FETCH_PORTS": json.dumps([80, 443, site.port]),
        "TRIVIUM_FETCH_NETWORKS": json.dumps([PUBLIC]),
        "TRIVIUM_FETCH_SECONDS": "2",
    }


@dataclass(frozen=True)
class Platform:
    """Where the gateway answers, and a client of the tenant `default` (development mode); `stranger` is another's."""

    address: tuple[str, int]
    client: httpx.Client
    stranger: httpx.Client


@contextmanager
def running(settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[Platform]:
    """The platform on these servers."""
    with ExitStack() as stack:
        for queue, make_pool in _POOLS.items():
            context = WorkerContext(
                settings,
                sessions,
                store,
                make_broker(settings),
                load_catalog(settings.encoders_file),
                queue,
                queue.value,
            )
            stack.enter_context(_worker(context, make_pool))
        address = stack.enter_context(_gateway(settings))
        with sessions.begin() as session:
            _, key = create_key(session, tenant="other", name="corpus")
        url = f"http://{address[0]}:{address[1]}"
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        headers = {"Authorization": f"Bearer {key}"}
        yield Platform(address, client, stack.enter_context(httpx.Client(base_url=url, headers=headers)))


class _Planning:
    """The dispatcher's pool without its sweep."""

    def __init__(self, context: WorkerContext):
        self.handlers: Mapping[Stage, Handler] = {Stage.PLAN: PlanJob(context)}
        self.lane = None

    def loaded_models(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


_POOLS: dict[Queue, Callable[[WorkerContext], Pool]] = {
    Queue.PLAN: _Planning,
    Queue.TEXT: services.text.tasks.make_pool,
    Queue.IMAGE: services.image.tasks.make_pool,
    Queue.AUDIO: services.audio.tasks.make_pool,
    Queue.FUSION: services.fusion.tasks.make_pool,
}


@contextmanager
def _worker(context: WorkerContext, make_pool: Callable[[WorkerContext], Pool]) -> Iterator[None]:
    pool = make_pool(context)
    leases: Any = Held()
    loop = ShardLoop(context, pool, leases)
    loop.start()
    try:
        yield
    finally:
        loop.stop()
        wait_for(lambda: not loop.running, seconds=30, what="the end of a worker")
        pool.close()


@contextmanager
def _gateway(settings: Settings) -> Iterator[tuple[str, int]]:
    with open_services(settings) as opened, socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            create_app(opened), http=LimitedHeadProtocol, log_config=None, access_log=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()
