"""Which worker takes which lane's requests, on a real Redis."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress

import pytest
from redis import Redis

from deploy.local.servers import Servers
from shared.conversations import Message
from shared.errors import BusyError, UnavailableError
from shared.lanes import inbox as inbox_module
from shared.lanes.client import LaneClient, LaneFailedError
from shared.lanes.inbox import Inbox
from shared.lanes.messages import (
    Encoded,
    Failed,
    GenerateItems,
    LaneAnswer,
    LaneRequest,
    Result,
    Rows,
    Said,
    Spoken,
    lane_key,
)
from shared.queues import Modality, Stage

LONG = 3600.0


@pytest.fixture
def url(servers: Servers) -> str:
    """An empty database."""
    url = servers.redis.url(3)
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


@pytest.fixture
async def lanes(url: str) -> AsyncIterator[LaneClient]:
    """A gateway's side; three requests may wait."""
    client = LaneClient(url, 3)
    yield client
    await client.close()


@pytest.fixture
def inbox(url: str) -> Iterator[Inbox]:
    """A worker's side."""
    opened = Inbox(url, Stage.TEXT)
    yield opened
    opened.close()


def ask(lanes: LaneClient, model: str, text: str = "x", seconds: float = 30) -> asyncio.Task[Encoded]:
    deadline = time.time() + seconds
    return asyncio.create_task(lanes.encode(Modality.TEXT, model, [text], {}, tenant="t", deadline=deadline))


async def take(inbox: Inbox, *models: str, patience: float = LONG) -> LaneRequest | None:
    """What the worker with these models takes; looks twice, since lanes that nobody serves are looked at in between."""
    for _ in range(2):
        data = await asyncio.to_thread(inbox.take, models, patience)
        if data is not None:
            return LaneRequest.model_validate_json(data)
    return None


async def sent(url: str, model: str, count: int = 1) -> None:
    """Waits until so many requests wait."""
    with Redis.from_url(url) as redis:
        async with asyncio.timeout(10):
            while redis.llen(lane_key(Stage.TEXT, model)) < count:
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
async def _no_tasks_left() -> AsyncIterator[None]:
    yield
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        with suppress(asyncio.CancelledError, UnavailableError):
            await task


async def test_who_has_the_model_takes_the_request_and_its_answer_comes_back(
    lanes: LaneClient, inbox: Inbox, url: str
) -> None:
    asked = [ask(lanes, "m", text) for text in ("one", "two")]
    requests = [await take(inbox, "other", "m") for _ in asked]
    for request in requests:
        assert request is not None
        result = Encoded(vectors=Rows(shape=(0, 4), data=""), faults={})
        if request.payload.items == ["one"]:  # type: ignore[union-attr]  # texts were sent
            answer = LaneAnswer(request_id=request.request_id, result=result)
        else:
            answer = LaneAnswer(request_id=request.request_id, result=Failed(code="boom", message="It broke."))
        inbox.answer(request.request_id, request.reply_to, answer.model_dump_json())
    assert (await asked[0]) == result
    with pytest.raises(Exception, match="It broke") as caught:
        await asked[1]
    assert caught.value.error_code == "boom"  # type: ignore[attr-defined]
    with Redis.from_url(url) as redis:
        assert requests[0] is not None
        assert not redis.exists(requests[0].reply_to)


async def test_a_lane_that_nobody_serves_is_taken_up_after_a_while_by_one(
    lanes: LaneClient, inbox: Inbox, url: str
) -> None:
    first = ask(lanes, "cold")
    await sent(url, "cold")
    assert await take(inbox, "warm") is None
    assert await take(inbox, "warm", patience=0) is not None
    second = ask(lanes, "cold")
    await sent(url, "cold")
    assert await take(inbox, "warm", patience=0) is None  # whoever took it up is loading the model
    await asyncio.to_thread(inbox.release, "cold")
    assert await take(inbox, "warm", patience=0) is not None  # it was dropped again meanwhile, say
    for task in (first, second):
        task.cancel()


async def test_every_lane_has_its_turn(lanes: LaneClient, inbox: Inbox, url: str) -> None:
    for model in ("a", "b"):
        for _ in range(3):
            ask(lanes, model)
        await sent(url, model, 3)
    taken = [await take(inbox, "a", "b") for _ in range(4)]
    assert {request.model for request in taken[:2] if request is not None} == {"a", "b"}
    assert {request.model for request in taken[2:] if request is not None} == {"a", "b"}


async def test_a_full_lane_takes_no_more(lanes: LaneClient, url: str) -> None:
    for _ in range(3):
        ask(lanes, "m")
    await sent(url, "m", 3)
    with pytest.raises(BusyError) as caught:
        await ask(lanes, "m")
    assert caught.value.error_code == "lane_full"
    assert caught.value.retry_after is not None


async def test_what_nobody_fetches_goes_away(lanes: LaneClient, inbox: Inbox, url: str) -> None:
    ask(lanes, "m")
    await sent(url, "m")
    inbox.answer("ask-1", "trivium:answers:gone", "{}")
    with Redis.from_url(url) as redis:
        keys = redis.keys("trivium:*")
        assert len(keys) == 3
        assert all(0 < redis.ttl(key) <= 60 for key in keys)


async def test_nonsense_on_the_list_of_answers_disturbs_nobody(lanes: LaneClient, inbox: Inbox) -> None:
    asked = ask(lanes, "m")
    request = await take(inbox, "m")
    assert request is not None
    for nonsense in (
        "{",
        json.dumps({"request_id": "other", "result": {"kind": "failed", "code": "x", "message": ""}}),
    ):
        inbox.answer(request.request_id, request.reply_to, nonsense)
    result = Encoded(vectors=Rows(shape=(0, 4), data=""), faults={})
    answer = LaneAnswer(request_id=request.request_id, result=result)
    inbox.answer(request.request_id, request.reply_to, answer.model_dump_json())
    assert await asked == result


def say(lanes: LaneClient, model: str) -> AsyncGenerator[Said | Spoken, None]:
    payload = GenerateItems(conversation=[Message(role="user", content="Hi")])
    return lanes.generate(model, payload, tenant="t", deadline=time.time() + 30)


async def speak(inbox: Inbox, request: LaneRequest, *results: Result) -> list[bool]:
    """Sends them one after the other; whether somebody waits for more."""
    answers = [LaneAnswer(request_id=request.request_id, result=result).model_dump_json() for result in results]
    return [await asyncio.to_thread(inbox.answer, request.request_id, request.reply_to, one) for one in answers]


@pytest.fixture
def speaking(url: str) -> Iterator[Inbox]:
    """The side of a worker that answers in pieces."""
    opened = Inbox(url, Stage.GENERATE)
    yield opened
    opened.close()


END = Spoken(finish_reason="stop", prompt_tokens=3, completion_tokens=2)


async def test_an_answer_comes_in_pieces_until_its_end(lanes: LaneClient, speaking: Inbox) -> None:
    said = say(lanes, "m")
    first = asyncio.ensure_future(anext(said))
    request = await take(speaking, "m")
    assert request is not None
    pieces = [Said(text="A "), Said(text="cat.")]
    assert await speak(speaking, request, *pieces, END) == [True] * 3
    assert [await first, *[piece async for piece in said]] == [*pieces, END]


async def test_who_goes_away_is_noticed_at_the_next_piece(lanes: LaneClient, speaking: Inbox) -> None:
    said = say(lanes, "m")
    first = asyncio.ensure_future(anext(said))
    request = await take(speaking, "m")
    assert request is not None
    assert await speak(speaking, request, Said(text="A ")) == [True]
    await first
    await said.aclose()
    await lanes.close()  # it has told so by now
    assert await speak(speaking, request, Said(text="cat.")) == [False]


async def test_a_failure_on_the_way_ends_the_answer(lanes: LaneClient, speaking: Inbox) -> None:
    said = say(lanes, "m")
    first = asyncio.ensure_future(anext(said))
    request = await take(speaking, "m")
    assert request is not None
    await speak(speaking, request, Said(text="A "), Failed(code="boom", message="It broke."))
    await first
    with pytest.raises(LaneFailedError, match="It broke"):
        await anext(said)


async def test_a_gateway_that_reads_no_more_counts_as_gone(
    url: str, speaking: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "UNREAD", 2)
    sent = [await asyncio.to_thread(speaking.answer, "ask-1", "trivium:answers:gone", "{}") for _ in range(4)]
    assert sent == [True, True, False, False]
