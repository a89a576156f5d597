"""Requests that come too fast: by key, by address, over several gateways, and with Redis away or frozen."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from deploy.local.ports import free_port
from deploy.local.redis import Redis
from services.gateway import buckets, middleware
from services.gateway.app import create_app
from services.gateway.buckets import Ask, Buckets, Level, OwnBuckets, Rate
from services.gateway.deps import Services
from shared.db import Sessions
from shared.ids import new_id
from shared.jobs.keys import create_key
from shared.settings import Settings

#: Practically never refilled while a test runs.
SLOW = 0.01


@pytest.fixture
def gateway(services: Services) -> Callable[..., TestClient]:
    """Makes gateways whose callers have so many requests, in effect once and for all."""

    @contextmanager
    def make(burst: int = 5, *, address: str | None = None, **settings: Any) -> Iterator[TestClient]:
        limits = services.settings.limits.model_copy(update={"requests_per_second": SLOW, "request_burst": burst})
        own = services.settings.model_copy(update={"limits": limits, **settings})
        app = create_app(replace(services, settings=own))
        with TestClient(app, client=(address or new_id("client"), 50000)) as client:
            yield client

    return make  # type: ignore[return-value]  # as a context manager


@pytest.fixture
def make_key(sessions: Sessions) -> Callable[[], dict[str, str]]:
    """Makes API keys, as headers."""

    def make() -> dict[str, str]:
        with sessions.begin() as session:
            return {"Authorization": f"Bearer {create_key(session, tenant='t', name='')[1]}"}

    return make


def statuses(client: TestClient, count: int, **options: Any) -> list[int]:
    """How so many requests in a row are answered."""
    return [client.get("/v1/models", **options).status_code for _ in range(count)]


def test_each_key_has_its_own_rate_and_answers_say_what_is_left(gateway: Any, make_key: Any) -> None:
    one, other = make_key(), make_key()
    with gateway(burst=3) as client:
        answers = [client.get("/v1/models", headers=one) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
        assert {answer.headers["ratelimit-limit"] for answer in answers} == {"3"}
        assert int(answers[0].headers["ratelimit-reset"]) == 100
        error = answers[-1].json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(answers[-1].headers["retry-after"]) == 100
        assert statuses(client, 2, headers=other) == [200, 200]
        assert statuses(client, 2) == [200, 200], "without a key it goes by the address"


def test_health_is_never_refused_and_everything_else_is(gateway: Any) -> None:
    with gateway(burst=1) as client:
        client.get("/docs")
        for path in ("/healthz", "/readyz", "/metrics"):
            answer = client.get(path)
            assert (answer.status_code, "ratelimit-limit" in answer.headers) == (200, False)
        for path in ("/docs", "/openapi.json", "/nowhere", "/v1/jobs"):
            assert client.get(path).status_code == 429, path


def test_gateways_share_the_buckets(gateway: Any, make_key: Any) -> None:
    key = make_key()
    with gateway(burst=5) as one, gateway(burst=5) as other:
        assert statuses(one, 3, headers=key) == [200] * 3
        assert statuses(other, 4, headers=key) == [200, 200, 429, 429]


def test_wrong_keys_are_refused_unseen_after_a_while(gateway: Any, make_key: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(middleware, "FAILURES", Rate(SLOW, 3))
    known, unknown = make_key(), make_key()
    wrong = {"Authorization": "Bearer sk-trivium-wrong"}
    with gateway(burst=100) as client:
        assert statuses(client, 1, headers=known) == [200]
        assert statuses(client, 5, headers=wrong) == [401, 401, 401, 429, 429]
        assert statuses(client, 1, headers=unknown) == [429], "a guess, even a right one, is not looked at"
        assert statuses(client, 1, headers=known) == [200], "who is known is not kept out by others at the same address"
    with gateway(burst=100) as elsewhere:
        assert statuses(elsewhere, 1, headers=unknown) == [200]


def test_a_key_that_was_revoked_is_a_wrong_one(
    gateway: Any, make_key: Any, sessions: Sessions, monkeypatch: Any
) -> None:
    monkeypatch.setattr(middleware, "FAILURES", Rate(SLOW, 2))
    key = make_key()
    with gateway(burst=100) as client:
        assert statuses(client, 1, headers=key) == [200]
        id = client.get("/v1/keys", params={"tenant": "t"}).json()["data"][-1]["id"]
        assert client.delete(f"/v1/keys/{id}").status_code == 200
        assert statuses(client, 3, headers=key) == [401, 401, 429]


def test_a_wrong_key_on_a_path_that_needs_none_makes_nobody_known(gateway: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(middleware, "FAILURES", Rate(SLOW, 1))
    wrong = {"Authorization": "Bearer sk-trivium-wrong"}
    with gateway(burst=100) as client:
        assert statuses(client, 1, headers=wrong) == [401]
        assert client.get("/nowhere", headers=wrong).status_code == 429
        assert statuses(client, 1, headers=wrong) == [429]


def test_without_redis_each_gateway_limits_alone(gateway: Any, make_key: Any) -> None:
    key, nowhere = make_key(), SecretStr(f"redis://:x@127.0.0.1:{free_port()}/0")
    with gateway(burst=3, redis_url=nowhere) as one, gateway(burst=3, redis_url=nowhere) as other:
        for client in (one, other):
            assert statuses(client, 4, headers=key) == [200, 200, 200, 429]


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis that may be frozen."""
    folder = tmp_path_factory.mktemp("redis")
    redis = Redis(folder, port=free_port(), password="secret-of-a-test", log=folder / "log")
    redis.start()
    yield redis
    redis.kill()


async def left_in_redis(url: str, ask: Ask) -> int:
    """Tokens that are left of a bucket, as a gateway that has just started sees it."""
    fresh = Buckets(url)
    [level] = await fresh.take(replace(ask, tokens=0))
    await fresh.close()
    return level.left


async def test_a_frozen_redis_is_waited_for_once_and_briefly(own_redis: Redis, monkeypatch: Any) -> None:
    shared, ask = Buckets(own_redis.url()), Ask(new_id("x"), Rate(SLOW, 100))
    await shared.take(ask)
    own_redis.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        levels = await asyncio.gather(*(shared.take(ask) for _ in range(50)))
        assert time.monotonic() - began < buckets.PATIENCE_SECONDS + 1.0
        assert {level.refused for [level] in levels} == {False}
        monkeypatch.setattr(buckets, "PATIENCE_SECONDS", 60.0)
        [level] = await asyncio.wait_for(shared.take(ask), 10)  # does not ask
        assert level.left == 49
    finally:
        own_redis.send_signal(signal.SIGCONT)
    await shared.close()
    assert await left_in_redis(own_redis.url(), ask) <= 99


@given(
    rate=st.builds(Rate, st.sampled_from([0.5, 3.0, 100.0]), st.integers(1, 5)),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3)), max_size=20),
)
def test_a_bucket_never_gives_more_than_its_rate(rate: Rate, steps: list[tuple[float, int]]) -> None:
    """In any stretch of time no more than a full bucket and what flowed in; and what is there is given."""
    own, now, given = OwnBuckets(), 1000.0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets.time, "monotonic", lambda: now)
        for pause, tokens in steps:
            now += pause
            before = own.take([Ask("b", rate, 0)])[0]
            [level] = own.take([Ask("b", rate, tokens)])
            assert level.refused == (before.left < max(tokens, 1))
            if not level.refused:
                given.append((now, tokens))
    for first, (begin, _) in enumerate(given):
        for last in range(first, len(given)):
            total = sum(tokens for _, tokens in given[first : last + 1])
            assert total <= rate.size + (given[last][0] - begin) * rate.per_second + 1e-3


async def test_redis_and_the_process_count_alike(settings: Settings) -> None:
    shared, own = Buckets(settings.redis_url.get_secret_value()), OwnBuckets()
    rate = Rate(SLOW, 10)
    bucket = new_id("x")

    def facts(levels: list[Level]) -> list[tuple[bool, int, int]]:
        return [(level.refused, level.left, round(level.wait_seconds, -1)) for level in levels]

    for tokens in (1, 0, 3, 7, 6, 0, 1):
        asks = [Ask(bucket, rate, tokens), Ask(bucket + "-other", rate, 0)]
        assert facts(await shared.take(*asks)) == facts(own.take(asks)), tokens
    await shared.close()
    assert await left_in_redis(settings.redis_url.get_secret_value(), Ask(bucket, rate)) == 0
