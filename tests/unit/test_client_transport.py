"""What the client does on the wire: retries, paging, resuming, downloads, errors. The same for both of its faces."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.client import (
    ApiError,
    AsyncClient,
    AuthenticationFailed,
    Client,
    ClientError,
    Conflict,
    ConnectionFailed,
    DamagedDownload,
    InvalidRequest,
    NotFound,
    RateLimited,
    Retries,
    ServerFailed,
    TooLarge,
    Unavailable,
    WaitTimeout,
)
from services.client.flows import BackOff, Send, call
from services.client.requests import create_key, get_job
from shared.fine_tuning import Method
from shared.schemas import JobStatus

URL = "http://gateway"
MODEL_ID = "model-01k9w0e1a4b7c2d5f8g3h6j9km"
Handler = Callable[[httpx.Request], httpx.Response]
#: Calls something of a client: a blocking one, or one whose result is awaited or iterated over.
Action = Callable[[Any], Any]


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces, whose connection then breaks if `breaks`."""

    def __init__(self, *pieces: bytes, breaks: bool = False):
        self.pieces, self.breaks = pieces, breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.breaks:
            raise httpx.ReadError("the connection was reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def blocking(handler: Handler, action: Action) -> Any:
    with Client(URL, transport=httpx.MockTransport(handler), retries=Retries(limit=3, base=0)) as client:
        result = action(client)
        return list(result) if isinstance(result, Iterator) else result


def awaited(handler: Handler, action: Action) -> Any:
    async def run() -> Any:
        transport = httpx.MockTransport(handler)
        async with AsyncClient(URL, transport=transport, retries=Retries(limit=3, base=0)) as client:
            result = action(client)
            if isinstance(result, AsyncIterator):
                return [entry async for entry in result]
            return await result

    return asyncio.run(run())


@pytest.fixture(params=[blocking, awaited], ids=["Client", "AsyncClient"])
def run(request: pytest.FixtureRequest) -> Callable[[Handler, Action], Any]:
    """Runs an action with one of the two faces against a handler that plays the gateway."""
    face: Callable[[Handler, Action], Any] = request.param
    return face


class Script:
    """A gateway that gives these answers one after the other; an exception stands for a broken connection."""

    def __init__(self, *answers: httpx.Response | Exception):
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.RequestError):
            answer.request = request
        if isinstance(answer, Exception):
            raise answer
        return answer


def job(status: str = "running", id: str = "job-1") -> dict[str, Any]:
    items = {"total": 0, "succeeded": 0, "partial": 0, "failed": 0}
    fields = {"items": items, "stages": {}, "request": {}, "metadata": {}}
    return {"id": id, "type": "features", "status": status, "created_at": 1, **fields}


def file() -> dict[str, Any]:
    fields = {"filename": "a.bin", "purpose": "user_data", "content_type": "application/octet-stream", "sha256": "x"}
    return {"id": "file-1", "bytes": 4, "created_at": 1, **fields}


def error(status: int, code: str = "some_code", headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"error": {"message": "It went wrong.", "type": "some_type", "code": code, "param": "items"}}
    return httpx.Response(status, json=body, headers={"X-Request-ID": "req-1", **(headers or {})})


def event_stream(*events: tuple[int, str], breaks: bool = False) -> httpx.Response:
    """Server-sent events with ids, as the gateway writes them, with a ping between them."""
    pieces = []
    for id, type in events:
        data = json.dumps({"id": str(id), "type": type, "created_at": 1.0, "data": {}})
        pieces += [f"id: {id}\nevent: {type}\ndata: {data}\n\n".encode(), b": ping\n\n"]
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Pieces(*pieces, breaks=breaks))


class TestRetries:
    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_an_answer_that_says_later_is_asked_again(self, run: Any, status: int) -> None:
        gateway = Script(error(status), error(status), httpx.Response(200, json=job()))
        assert run(gateway, lambda client: client.jobs.get("job-1")).id == "job-1"
        assert len(gateway.requests) == 3

    def test_a_broken_connection_is_made_again(self, run: Any) -> None:
        gateway = Script(httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.Response(200, json=job()))
        assert run(gateway, lambda client: client.jobs.get("job-1")).id == "job-1"

    def test_it_gives_up_in_the_end(self, run: Any) -> None:
        gateway = Script(*[httpx.ConnectError("refused")] * 4)
        with pytest.raises(ConnectionFailed, match="http://gateway cannot be reached: refused"):
            run(gateway, lambda client: client.jobs.get("job-1"))
        assert len(gateway.requests) == 4

    @pytest.mark.parametrize("status", [400, 404, 422, 500])
    def test_other_errors_are_final(self, run: Any, status: int) -> None:
        gateway = Script(error(status))
        with pytest.raises(ApiError):
            run(gateway, lambda client: client.jobs.get("job-1"))

    def test_a_job_is_created_once_though_asked_for_again(self, run: Any) -> None:
        gateway = Script(httpx.ReadTimeout("too slow"), error(503), httpx.Response(202, json=job()))
        run(gateway, lambda client: client.jobs.create(items=[{"id": "a", "text": "b"}]))
        keys = {request.headers["Idempotency-Key"] for request in gateway.requests}
        assert len(gateway.requests) == 3
        assert len(keys) == 1
        assert len(keys.pop()) >= 32

    def test_two_jobs_have_two_keys(self, run: Any) -> None:
        gateway = Script(httpx.Response(202, json=job()), httpx.Response(202, json=job()))
        for _ in range(2):
            run(gateway, lambda client: client.jobs.create(items=[{"id": "a", "text": "b"}]))
        first, second = (request.headers["Idempotency-Key"] for request in gateway.requests)
        assert first != second

    def test_what_may_have_happened_already_is_not_repeated(self, run: Any) -> None:
        gateway = Script(httpx.ReadError("reset"))
        with pytest.raises(ConnectionFailed):
            run(gateway, lambda client: client.keys.create(name="laptop"))

    def test_what_never_arrived_is_repeated(self, run: Any) -> None:
        key = {"id": "key-1", "tenant": "t", "name": "", "scope": "user", "hint": "x", "created_at": 1, "key": "sk-x"}
        gateway = Script(httpx.ConnectError("refused"), error(503), httpx.Response(201, json=key))
        assert run(gateway, lambda client: client.keys.create()).key == "sk-x"

    def test_pauses_grow_and_end(self) -> None:
        retries = Retries(limit=5, base=0.5, ceiling=4)
        bounds = [(0.25, 0.5), (0.5, 1), (1, 2), (2, 4), (2, 4)]
        for attempt, (low, high) in enumerate(bounds, start=1):
            pause = retries.pause(attempt)
            assert pause is not None
            assert low <= pause <= high
        assert retries.pause(6) is None

    def test_retry_after_rules(self) -> None:
        assert Retries().pause(1, error(429, headers={"Retry-After": "7"})) == 7
        date = {"Date": "Mon, 23 Nov 2026 10:00:00 GMT", "Retry-After": "Mon, 23 Nov 2026 10:00:42 GMT"}
        assert Retries().pause(1, error(503, headers=date)) == 42
        assert Retries().pause(1, error(503, headers={"Retry-After": "9999"})) is None

    def test_the_answer_decides_about_the_pause(self) -> None:
        flow = call(get_job("job-1"))
        assert isinstance(next(flow), Send)
        answer = error(429)
        assert flow.send(answer) == BackOff(1, answer)
        assert isinstance(flow.send(True), Send)

    def test_a_key_is_not_asked_for_twice(self) -> None:
        flow = call(create_key())
        next(flow)
        with pytest.raises(ApiError):
            flow.send(error(502))


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, InvalidRequest),
            (401, AuthenticationFailed),
            (403, AuthenticationFailed),
            (404, NotFound),
            (409, Conflict),
            (413, TooLarge),
            (418, InvalidRequest),
            (422, InvalidRequest),
            (429, RateLimited),
            (500, ServerFailed),
            (503, Unavailable),
            (507, ServerFailed),
        ],
    )
    def test_each_status_has_its_type(self, run: Any, status: int, kind: type[ApiError]) -> None:
        def gateway(_: httpx.Request) -> httpx.Response:
            return error(status, headers={"Retry-After": "0"})

        with pytest.raises(kind, match=r"It went wrong\.") as caught:
            run(gateway, lambda client: client.jobs.get("job-1"))
        assert (caught.value.status_code, caught.value.error_code) == (status, "some_code")
        assert (caught.value.param, caught.value.request_id) == ("items", "req-1")
        assert caught.value.retry_after == 0

    def test_a_proxys_own_page_is_an_error_too(self, run: Any) -> None:
        gateway = Script(httpx.Response(500, html="<h1>Internal Server Error</h1>"))
        with pytest.raises(ServerFailed, match="http://gateway/v1/jobs/job-1 answered 500") as caught:
            run(gateway, lambda client: client.jobs.get("job-1"))
        assert caught.value.error_code == "http_500"

    def test_an_answer_of_something_else_is_said_to_be_so(self, run: Any) -> None:
        gateway = Script(httpx.Response(200, html="<h1>Welcome</h1>"))
        with pytest.raises(ServerFailed) as caught:
            run(gateway, lambda client: client.jobs.get("job-1"))
        assert caught.value.error_code == "unexpected_answer"


class TestRequests:
    def test_the_key_goes_along(self) -> None:
        gateway = Script(httpx.Response(200, json=job()))
        with Client(URL + "/", "sk-secret", transport=httpx.MockTransport(gateway)) as client:
            client.jobs.get("job-1")
            assert "sk-secret" not in repr(client.address)
        assert gateway.requests[0].headers["Authorization"] == "Bearer sk-secret"
        assert str(gateway.requests[0].url) == "http://gateway/v1/jobs/job-1"

    def test_an_id_cannot_leave_its_place_in_the_path(self, run: Any) -> None:
        gateway = Script(httpx.Response(200, json=job()))
        run(gateway, lambda client: client.jobs.get("../files?x#y"))
        assert gateway.requests[0].url.raw_path == b"/v1/jobs/..%2Ffiles%3Fx%23y"

    def test_filters(self, run: Any) -> None:
        gateway = Script(httpx.Response(200, json={"data": []}))
        states = [JobStatus.QUEUED, JobStatus.RUNNING]
        assert run(gateway, lambda client: client.jobs.list(status=states, metadata={"a b": "ü"}, limit=5)) == []
        query = gateway.requests[0].url.params
        assert query.get_list("status") == ["queued", "running"]
        assert (query["metadata[a b]"], query["limit"], "type" in query) == ("ü", "5", False)

    def test_only_what_was_given_is_sent(self, run: Any) -> None:
        gateway = Script(httpx.Response(202, json=job()))
        run(gateway, lambda c: c.jobs.create(input={"file_id": "file-1"}, encoders={"audio": None}, priority=3))
        body = json.loads(gateway.requests[0].content)
        assert body == {
            "type": "features", "input": {"file_id": "file-1"}, "encoders": {"audio": None}, "priority": 3,
        }  # fmt: skip

    def test_training_and_predicting_on_a_feature_set(self, run: Any) -> None:
        features = "job-01k9w0c3v8e6m5j2k1x7r4t9qz"
        gateway = Script(httpx.Response(202, json=job()), httpx.Response(202, json=job()))
        options: Any = {"method": Method.REGRESSOR, "training": {"epochs": 3}, "fusion": {"method": "gated"}}
        run(gateway, lambda client: client.fine_tune(features, **options))
        run(gateway, lambda client: client.predict(features, model=MODEL_ID, contributions=False))
        bodies = [json.loads(request.content) for request in gateway.requests]
        assert bodies == [
            {
                "type": "fine_tune", "features": features, "method": "regressor", "training": {"epochs": 3},
                "fusion": {"method": "gated"},
            },
            {"type": "predict", "features": features, "model": MODEL_ID, "contributions": False},
        ]  # fmt: skip

    def test_training_and_predicting_on_records(self, run: Any) -> None:
        gateway = Script(httpx.Response(202, json=job()), httpx.Response(202, json=job()))
        items = [{"id": "a", "text": "b", "label": "c"}]
        run(gateway, lambda client: client.fine_tune(items, preset="fast"))
        run(gateway, lambda client: client.predict(items, model=MODEL_ID))
        bodies = [json.loads(request.content) for request in gateway.requests]
        assert bodies == [
            {"type": "fine_tune", "items": items, "preset": "fast"},
            {"type": "predict", "items": items, "model": MODEL_ID},
        ]

    def test_predictions_at_once(self, run: Any) -> None:
        said = {"id": "a", "prediction": ["cat"], "probability": 0.75, "contributions": {"text": 0.5}}
        answers = [error(503), httpx.Response(200, json={"model": MODEL_ID, "data": [said]})]
        gateway = Script(*answers)
        items = [{"id": "a", "text": "b"}]
        found = run(gateway, lambda c: c.predictions.create(model=MODEL_ID, items=items, contributions=True))
        assert (found.data[0].prediction, found.data[0].contributions) == (["cat"], {"text": 0.5})
        assert str(gateway.requests[1].url) == f"{URL}/v1/predictions"
        assert json.loads(gateway.requests[1].content) == {"model": MODEL_ID, "items": items, "contributions": True}

    def test_an_index_and_a_search_in_it(self, run: Any, tmp_path: Path) -> None:
        """A small sound goes with the request, a large one is uploaded before it."""
        result = {
            "id": "a", "score": 0.75, "modality": "image", "label": [], "split": None, "metadata": {}, "text": None,
            "image_ref": "a.png", "audio_ref": None,
        }  # fmt: skip
        kind = {"filename": "x", "purpose": "user_data", "content_type": "audio/wav"}
        file = {"id": "file-1", "bytes": 1, "created_at": 1, "sha256": "x", **kind}
        found = httpx.Response(200, json={"index": "job-1", "data": [result]})
        gateway = Script(httpx.Response(202, json=job()), found, httpx.Response(201, json=file), found)
        features = "job-01k9w0b0aaaaaaaaaaaaaaaaaa"
        run(gateway, lambda client: client.index(features, model=MODEL_ID))
        (tmp_path / "small.wav").write_bytes(b"RIFF")
        small = run(gateway, lambda c: c.search("job-1", audio=tmp_path / "small.wav", modality="image", limit=3))
        assert (small.data[0].id, small.data[0].score) == ("a", 0.75)
        run(gateway, lambda c: c.search("job-1", image=b"x" * 1024**2, filter={"label": "cat"}, timeout_seconds=20))
        bodies = [json.loads(gateway.requests[place].content) for place in (0, 1, 3)]
        assert bodies == [
            {"type": "index", "features": features, "model": MODEL_ID},
            {"index": "job-1", "query": {"audio": "data:;base64,UklGRg=="}, "modality": "image", "limit": 3,
             "exact": False},
            {"index": "job-1", "query": {"image": "file-1"}, "limit": 10, "filter": {"label": "cat"}, "exact": False,
             "timeout_seconds": 20},
        ]  # fmt: skip

    def test_a_sound_that_is_not_there(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="cannot be read"):
            run(Script(), lambda client: client.search("job-1", audio=tmp_path / "none.wav"))

    def test_features_are_not_made_of_features(self, run: Any) -> None:
        with pytest.raises(ClientError, match="there already") as caught:
            run(Script(), lambda client: client.features("job-01k9w0c3v8e6m5j2k1x7r4t9qz"))
        assert caught.value.error_code == "unsuitable_source"


class TestLists:
    def test_pages_are_fetched_as_they_are_needed(self) -> None:
        pages = {None: (["job-3", "job-2"], True), "job-2": (["job-1"], False)}
        asked: list[str | None] = []

        def gateway(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.params.get("after"))
            ids, more = pages[asked[-1]]
            data = [job(id=id) for id in ids]
            return httpx.Response(200, json={"data": data, "has_more": more, "last_id": ids[-1]})

        with Client(URL, transport=httpx.MockTransport(gateway)) as client:
            jobs = client.jobs.list(limit=2)
            assert [next(jobs).id, next(jobs).id] == ["job-3", "job-2"]
            assert asked == [None]
            assert [one.id for one in jobs] == ["job-1"]
        assert asked == [None, "job-2"]

    def test_all_pages(self, run: Any) -> None:
        first = {"data": [job(id="job-2")], "has_more": True, "last_id": "job-2"}
        gateway = Script(httpx.Response(200, json=first), error(503), httpx.Response(200, json={"data": [job()]}))
        assert [one.id for one in run(gateway, lambda client: client.jobs.list())] == ["job-2", "job-1"]


class TestEvents:
    def test_a_stream_that_breaks_is_resumed_behind_the_last_event(self, run: Any) -> None:
        gateway = Script(
            event_stream((1, "job.queued"), (2, "job.running"), breaks=True),
            httpx.ConnectError("refused"),
            error(503),
            event_stream((3, "stage.finished"), (4, "job.succeeded")),
        )
        events = run(gateway, lambda client: client.jobs.events("job-1"))
        assert [event.id for event in events] == ["1", "2", "3", "4"]
        assert [r.headers.get("Last-Event-ID") for r in gateway.requests] == [None, "2", "2", "2"]

    def test_a_gateway_that_shuts_down_ends_the_stream_but_not_the_job(self, run: Any) -> None:
        gateway = Script(event_stream((1, "job.running")), event_stream((2, "job.failed")))
        events = run(gateway, lambda client: client.jobs.events("job-1"))
        assert [event.type for event in events] == ["job.running", "job.failed"]

    def test_an_end_that_was_retried_is_no_end(self, run: Any) -> None:
        gateway = Script(
            event_stream((1, "job.failed"), (2, "job.retried"), (3, "job.running")),
            event_stream((4, "job.succeeded")),
        )
        events = run(gateway, lambda client: client.jobs.events("job-1"))
        assert [event.id for event in events] == ["1", "2", "3", "4"]

    def test_nothing_behind_the_last_event(self, run: Any) -> None:
        gateway = Script(httpx.Response(204))
        assert run(gateway, lambda client: client.jobs.events("job-1", after="9")) == []
        assert gateway.requests[0].headers["Last-Event-ID"] == "9"

    def test_it_gives_up_when_nothing_ever_comes(self, run: Any) -> None:
        def gateway(_: httpx.Request) -> httpx.Response:
            return event_stream(breaks=True)

        with pytest.raises(ConnectionFailed, match="break off"):
            run(gateway, lambda client: client.jobs.events("job-1"))

    def test_events_count_as_progress(self, run: Any) -> None:
        streams = [event_stream((id, "stage.finished"), breaks=True) for id in range(10)]
        gateway = Script(*streams, event_stream((10, "job.cancelled")))
        assert len(run(gateway, lambda client: client.jobs.events("job-1"))) == 11


class TestWaiting:
    def test_it_returns_the_job_that_has_ended(self, run: Any) -> None:
        gateway = Script(httpx.Response(200, json=job("running")), httpx.Response(200, json=job("failed")))
        assert run(gateway, lambda client: client.jobs.wait("job-1")).status == "failed"

    def test_it_does_not_wait_for_ever(self, run: Any) -> None:
        gateway = Script(httpx.Response(200, json=job("running")))
        with pytest.raises(WaitTimeout, match="job-1 is still running"):
            run(gateway, lambda client: client.jobs.wait("job-1", timeout=0))


class TestDownloads:
    def test_a_file_appears_when_it_is_complete(self, run: Any, tmp_path: Path) -> None:
        target = tmp_path / "features.parquet"
        target.write_bytes(b"old")
        seen: list[tuple[int, int | None]] = []
        broken = httpx.Response(200, stream=Pieces(b"half of", breaks=True))
        whole = httpx.Response(200, stream=Pieces(b"all ", b"of it"), headers={"Content-Length": "9"})
        gateway = Script(broken, whole)

        def on_bytes(done: int, total: int | None) -> None:
            seen.append((done, total))
            assert target.read_bytes() == b"old"

        assert run(gateway, lambda client: client.jobs.results("job-1", target, on_bytes=on_bytes)) == target
        assert target.read_bytes() == b"all of it"
        assert seen == [(7, None), (4, 9), (9, 9)]
        assert [path.name for path in tmp_path.iterdir()] == [target.name]
        assert gateway.requests[0].url.params["format"] == "parquet"

    def test_a_download_that_fails_leaves_nothing(self, run: Any, tmp_path: Path) -> None:
        def gateway(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=Pieces(b"half", breaks=True))

        with pytest.raises(ConnectionFailed):
            run(gateway, lambda client: client.jobs.results("job-1", tmp_path / "features.npz", format="npz"))
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_download_leaves_nothing(self, tmp_path: Path) -> None:
        def on_bytes(_done: int, _total: int | None) -> None:
            raise KeyboardInterrupt

        def gateway(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=b"all of it")

        with pytest.raises(KeyboardInterrupt):
            blocking(gateway, lambda client: client.jobs.results("job-1", tmp_path / "x.jsonl", on_bytes=on_bytes))
        assert list(tmp_path.iterdir()) == []

    def test_an_error_is_an_error(self, run: Any, tmp_path: Path) -> None:
        gateway = Script(error(409, "job_not_finished"))
        with pytest.raises(Conflict) as caught:
            run(gateway, lambda client: client.jobs.results("job-1", tmp_path / "x.parquet"))
        assert caught.value.error_code == "job_not_finished"

    def test_a_place_that_cannot_be_written(self, run: Any, tmp_path: Path) -> None:
        gateway = Script(httpx.Response(200, content=b"all of it"))
        with pytest.raises(ClientError, match="cannot be written") as caught:
            run(gateway, lambda client: client.jobs.results("job-1", tmp_path / "no folder" / "x.parquet"))
        assert caught.value.error_code == "unwritable_file"


WEIGHTS, CARD = b"weights" * 1000, b"# A model"


def model(*files: str) -> httpx.Response:
    entry = {"id": MODEL_ID, "kind": "classifier", "modality": None, "dimension": 8, "loader": "fine_tuned"}
    return httpx.Response(200, json={**entry, "files": list(files)})


def model_file(content: bytes, etag: str = '"{}"', **fields: Any) -> httpx.Response:
    headers = {"ETag": etag.format(sha256(content).hexdigest())}
    return httpx.Response(200, headers=headers, **(fields or {"content": content}))


class TestModels:
    def test_a_folder_appears_when_all_its_files_are_there_as_they_are_stored(self, run: Any, tmp_path: Path) -> None:
        target = tmp_path / "model"
        seen: list[tuple[int, int | None]] = []
        gateway = Script(
            model("README.md", "plots/a b.png", "weights.safetensors"),
            model_file(CARD),
            model_file(b"picture", etag='W/"{}"'),
            model_file(WEIGHTS, stream=Pieces(WEIGHTS[:9], breaks=True)),
            model_file(WEIGHTS, stream=Pieces(b"other bytes")),
            error(503),
            model_file(WEIGHTS),
        )

        def on_bytes(received: int, total: int | None) -> None:
            seen.append((received, total))
            assert not target.exists()

        assert run(gateway, lambda client: client.models.download(MODEL_ID, target, on_bytes=on_bytes)) == target
        assert (target / "README.md").read_bytes() == CARD
        assert (target / "plots" / "a b.png").read_bytes() == b"picture"
        assert (target / "weights.safetensors").read_bytes() == WEIGHTS
        assert list(tmp_path.iterdir()) == [target]
        assert len([path for path in target.rglob("*") if path.is_file()]) == 3
        assert gateway.requests[2].url.raw_path == f"/v1/models/{MODEL_ID}/files/plots/a%20b.png".encode()
        before = len(CARD) + len(b"picture")
        assert seen[:2] == [(len(CARD), None), (before, None)]
        assert seen[-1] == (before + len(WEIGHTS), None)

    @pytest.mark.parametrize("etag", ['"{}x"', "{}", ""])
    def test_what_is_not_what_is_stored_is_not_kept(self, run: Any, tmp_path: Path, etag: str) -> None:
        gateway = Script(model("config.json"), *[model_file(CARD, etag)] * 4)
        with pytest.raises(DamagedDownload, match=r"config\.json did not arrive as it is stored"):
            run(gateway, lambda client: client.models.download(MODEL_ID, tmp_path / "model"))
        assert list(tmp_path.iterdir()) == []
        assert gateway.answers == [], "it was tried again"

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
    def test_a_file_cannot_leave_the_folder(self, run: Any, tmp_path: Path, name: str) -> None:
        gateway = Script(model(name))
        with pytest.raises(ClientError, match="outside") as caught:
            run(gateway, lambda client: client.models.download(MODEL_ID, tmp_path / "model"))
        assert caught.value.error_code == "unsafe_path"
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_there_stays_as_it_is(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="not there yet") as caught:
            run(Script(model("a")), lambda client: client.models.download(MODEL_ID, tmp_path))
        assert caught.value.error_code == "folder_exists"

    def test_an_encoder_has_no_files(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="only a model that a job made"):
            run(Script(model()), lambda client: client.models.download(MODEL_ID, tmp_path / "model"))

    def test_a_place_that_cannot_be_written(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(ClientError) as caught:
            run(Script(model("a")), lambda client: client.models.download(MODEL_ID, tmp_path / "none" / "model"))
        assert caught.value.error_code == "unwritable_folder"


class TestUploads:
    def test_a_retried_upload_is_sent_whole(self, run: Any, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"\x00\xff" * 300_000)
        bodies: list[bytes] = []

        def gateway(request: httpx.Request) -> httpx.Response:
            bodies.append(request.content)
            assert int(request.headers["Content-Length"]) == len(bodies[-1])
            return httpx.Response(200, json=file()) if len(bodies) == 2 else error(503, headers={"Retry-After": "0"})

        seen: list[int] = []
        uploaded = run(gateway, lambda client: client.files.upload(path, on_bytes=lambda sent, _: seen.append(sent)))
        assert uploaded.id == "file-1"
        assert path.read_bytes() in bodies[0]
        assert len(bodies[0]) == len(bodies[1])
        assert seen[-1] == 600_000

    def test_a_file_that_is_not_there(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match=r"no\.bin cannot be read"):
            run(Script(), lambda client: client.files.upload(tmp_path / "no.bin"))
