"""A gateway that is played, for tests of the command line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

JOB_ID = "job-01k9w0c3v8e6m5j2k1x7r4t9qz"


def stage(done: int, total: int, **fields: Any) -> dict[str, Any]:
    counts = {"shards_total": 2, "shards_done": 1, "shards_failed": 0, "items_cached": 0}
    times = {"started_at": 1000.0, "finished_at": 1002.0 if done == total else None}
    return {**counts, "items_total": total, "items_done": done, **times, **fields}


def job(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {
        "id": JOB_ID,
        "type": "features",
        "status": status,
        "created_at": 1000,
        "started_at": 1001,
        "finished_at": 1009,
        "items": {"total": 1226, "succeeded": 1200, "partial": 20, "failed": 6},
        "stages": {"text": stage(1132, 1132), "image": stage(500, 1141)},
        "request": {"encoders": {"text": "all-minilm-l6-v2", "image": None, "audio": None}},
        "metadata": {"project": "emoji"},
        **fields,
    }


def error(status: int, code: str, message: str) -> httpx.Response:
    body = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
    return httpx.Response(status, json={"error": body}, headers={"X-Request-ID": "req-1"})


def page(*entries: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": list(entries), "has_more": False})


def events(*events: tuple[str, dict[str, Any]]) -> httpx.Response:
    lines = [
        f"id: {id}\ndata: {json.dumps({'id': str(id), 'type': type, 'created_at': 1.0, 'data': data})}\n\n"
        for id, (type, data) in enumerate(events, start=1)
    ]
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content="".join(lines).encode())


#: Runs `trivium` with these arguments.
Run = Callable[..., Any]
Answer = httpx.Response | Callable[[httpx.Request], httpx.Response]


@dataclass
class Gateway:
    """Answers by method and path; remembers what it was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def sent(self, path: str) -> Any:
        """The body of the one request to this path."""
        [request] = [request for request in self.requests if request.url.path == path]
        return json.loads(request.content)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.get(f"{request.method} {request.url.path}", error(404, "unknown_route", "No such route."))
        return answer if isinstance(answer, httpx.Response) else answer(request)
