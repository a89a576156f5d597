"""Talking on the command line, against a gateway that is played."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client_gateway import JOB_ID, Gateway, Run, error, job

PATH = "POST /v1/chat/completions"
SHAPE = {"id": "chatcmpl-1", "created": 1, "model": "m"}


def stream(*events: Any) -> httpx.Response:
    lines = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=f": ping\n\n{lines}".encode())


def chunk(text: str = "", reason: str | None = None) -> dict[str, Any]:
    return {**SHAPE, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def test_the_answer_is_shown_as_it_comes(gateway: Gateway, run: Run, tmp_path: Path) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    gateway.answers[PATH] = stream(
        chunk("A [cat]"), chunk(".\n"), chunk(reason="length"), {**SHAPE, "choices": [], "usage": usage}, "[DONE]"
    )  # fmt: skip
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "a.ogg").write_bytes(b"sound")
    options = ["--system", "Be brief.", "--max-tokens", "8", "--temperature", "0", "--seed", "1"]
    media = ["--image", str(tmp_path / "a.png"), "--audio", str(tmp_path / "a.ogg")]
    result = run("chat", "m", "Who?", *media, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == "A [cat].\n\n"
    assert "broken off" in result.stderr
    sent = gateway.sent("/v1/chat/completions")
    picture, sound = (base64.b64encode(data).decode() for data in (b"picture", b"sound"))
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/ogg;base64,{sound}"}},
        {"type": "text", "text": "Who?"},
    ]
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    assert {name: sent[name] for name in ("max_completion_tokens", "temperature", "seed", "stream")} == {
        "max_completion_tokens": 8, "temperature": 0, "seed": 1, "stream": True,
    }  # fmt: skip


def test_a_whole_answer_as_json(gateway: Gateway, run: Run) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    gateway.answers[PATH] = httpx.Response(200, json={**SHAPE, "choices": [choice], "usage": usage})
    result = run("chat", "m", "Well?", "--json")
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "Yes."
    assert gateway.sent("/v1/chat/completions")["messages"] == [{"role": "user", "content": "Well?"}]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(404, "model_not_found", "There is no model."), "There is no model. (model_not_found"),
        (stream(chunk("A"), {"error": {"message": "It broke.", "type": "t", "code": "boom"}}, "[DONE]"), "It broke."),
        (stream(chunk("A")), "broke off"),
    ],
)
def test_an_answer_that_fails_says_why(gateway: Gateway, run: Run, answer: httpx.Response, words: str) -> None:
    gateway.answers[PATH] = answer
    result = run("chat", "m", "Well?")
    assert result.exit_code == 1
    assert words in result.stderr


def test_a_file_that_cannot_be_read_is_said_so(run: Run, tmp_path: Path) -> None:
    result = run("chat", "m", "Who?", "--image", str(tmp_path / "none.png"))
    assert result.exit_code == 1
    assert "unreadable_file" in result.stderr


def test_predict_jobs_of_language_models(gateway: Gateway, run: Run) -> None:
    gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued"))
    result = run(
        "predict", JOB_ID, "--model", "m", "--prompt", "Of {text}:", "--set", "max_tokens=8", "--set", "seed=3"
    )
    assert result.exit_code == 0, result.output
    sent = gateway.sent("/v1/jobs")
    assert (sent["prompt"], sent["generation"]) == ({"template": "Of {text}:"}, {"max_tokens": 8, "seed": 3})
