"""Prompts in the registry: versions that stay, filters, previews, and jobs that keep what they were given."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from services.client.cli import app
from services.client.client import Client
from shared.db import Sessions
from shared.jobs.models import Job

RUMOUR = {"template": "{image}Is it a rumour?\n{text}", "verbalizers": {"rumour": ["yes"], "news": ["no", "nope"]}}
DUAL = {"text": None, "image": "clip-vit-base-patch32-image", "audio": None}


def store(client: httpx.Client, name: str, **prompt: Any) -> dict[str, Any]:
    answer = client.post("/v1/prompts", json={"name": name, "prompt": prompt})
    assert answer.status_code == 201, answer.text
    return answer.json()


def job(client: httpx.Client, **options: Any) -> httpx.Response:
    items = [{"id": f"i{n}", "text": "hello", "image": "data:image/png;base64,AAAA", "label": "a"} for n in range(3)]
    body = {"type": "fine_tune", "method": "prompt", "items": items, "encoders": DUAL, **options}
    return client.post("/v1/jobs", json=body)


def test_a_new_version_keeps_the_old_one(client: httpx.Client, stranger: httpx.Client) -> None:
    first, second = store(client, "rumour", **RUMOUR), store(client, "rumour", template="{text}", language="zh")
    assert (first["version"], second["version"]) == (1, 2)
    assert client.get(f"/v1/prompts/{first['id']}").json() == first
    assert store(stranger, "rumour", template="{text}")["version"] == 1
    listed = client.get("/v1/prompts", params={"name": "rumour"}).json()["data"]
    assert [p["id"] for p in listed] == [second["id"], first["id"]]
    other = store(client, "other", **RUMOUR)
    newest = client.get("/v1/prompts", params={"newest": True}).json()["data"]
    assert {p["id"] for p in newest} >= {other["id"], second["id"]}
    assert first["id"] not in {p["id"] for p in newest}
    assert [p["id"] for p in client.get("/v1/prompts", params={"language": "zh"}).json()["data"]] == [second["id"]]
    page = client.get("/v1/prompts", params={"limit": 1}).json()
    assert page["has_more"]
    assert client.get("/v1/prompts", params={"after": page["last_id"]}).json()["data"][0]["id"] == second["id"]
    assert stranger.get(f"/v1/prompts/{first['id']}").json()["error"]["code"] == "prompt_not_found"
    assert stranger.delete(f"/v1/prompts/{first['id']}").status_code == 404
    assert client.delete(f"/v1/prompts/{first['id']}").json()["deleted"]
    assert client.get(f"/v1/prompts/{first['id']}").status_code == 404


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ({"template": "{label}: {text}"}, "prompt.template"),
        ({"class_templates": ["a photo"]}, "prompt.class_templates.0"),
        ({"verbalizers": {"a": []}}, "prompt.verbalizers.a"),
        ({"image_text": {"text": " "}}, "prompt.image_text.text"),
        ({"wording": "x"}, "prompt.wording"),
        ({"image_text": {"text": "a\0"}}, "prompt.image_text.text"),
        ({"system": "a\0"}, "prompt"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(client: httpx.Client, prompt: dict[str, Any], field: str) -> None:
    answer = client.post("/v1/prompts", json={"name": "x", "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


def test_a_preview_shows_what_models_are_given(client: httpx.Client) -> None:
    """Braces in an item's own words are words."""
    drawn = {"text": "谣言还是新闻？"}
    prompt = store(client, "drawn", **RUMOUR, class_templates=["a {label}", "{label}!"], image_text=drawn)
    item = {"id": "a", "text": "{audio} {x}", "image": "file-x", "label": "other"}
    shown = client.post(f"/v1/prompts/{prompt['id']}/preview", json={"item": item}).json()
    question = {"type": "text", "text": "Is it a rumour?\n{audio} {x}"}
    assert shown["conversation"] == [{"role": "user", "content": [{"type": "image"}, question]}]
    assert shown["text"] == "user: [image]Is it a rumour?\n{audio} {x}"
    assert shown["class_texts"]["news"] == ["a no", "a nope", "no!", "nope!"]
    assert shown["class_texts"]["other"] == ["a other", "other!"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["image"].partition(",")[2]))))
    assert (picture[:200] == 160).all()
    assert (picture[300:] != 160).any()


def test_a_job_keeps_the_prompt_that_it_was_given(client: httpx.Client, sessions: Sessions) -> None:
    """By id it is put into the request at the door; what becomes of the registry changes no job."""
    one = store(client, "kept", class_templates=["a {label}"], image_text={"text": "看"})
    made = job(client, prompt=one["id"])
    assert made.status_code == 202, made.text
    assert client.delete(f"/v1/prompts/{one['id']}").status_code == 200
    with sessions() as session:
        request = session.get_one(Job, made.json()["id"]).request
    assert request["prompt"] == one["prompt"]
    assert request["preprocessing"]["image"]["drawn_text"] == one["prompt"]["image_text"]
    again = job(client, prompts=[one["id"]])
    assert (again.status_code, again.json()["error"]["code"]) == (404, "prompt_not_found")


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"encoders": {**DUAL, "audio": "mfcc-stats"}}, "unsuitable_encoder", "encoders.audio"),
        ({"text_encoder": "all-minilm-l6-v2"}, "unsuitable_encoder", "text_encoder"),
        ({"language_model": "nothing"}, "unknown_language_model", "language_model"),
        ({"how": "context", "language_model": "gemma3-270m"}, "invalid_request", ""),
        ({"prompts": [{}, {"image_text": {"text": "a"}}]}, "invalid_request", "prompts"),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_door(
    client: httpx.Client, options: dict[str, Any], code: str, param: str
) -> None:
    answer = job(client, **options)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"] or "") == (422, code, param), answer.text


def test_prompts_on_the_command_line(url: str, tmp_path: Path) -> None:
    file, picture = tmp_path / "prompt.json", tmp_path / "words.png"
    file.write_text(json.dumps({**RUMOUR, "image_text": {"text": "谣言"}}))

    def trivium(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["--url", url, "prompts", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    id = trivium("create", "typed", str(file)).splitlines()[-1]  # the gateway, in this process, logs to stdout too
    assert id in trivium("list", "--name", "typed")
    assert "Is it a rumour?" in trivium("show", id)
    shown = trivium("preview", id, "--text", "so", "--image", "--picture", str(picture))
    assert "user: [image]Is it a rumour?\nso" in shown
    assert "news: a photo of a no. | a photo of a nope." in shown
    with Image.open(picture) as written:
        assert written.size == (448, 448)
    trivium("delete", id)
    file.write_text('{"template": "{label}"}')
    wrong = CliRunner().invoke(app, ["--url", url, "prompts", "create", "typed", str(file)])
    assert wrong.exit_code == 1
    assert "template: {label} is no placeholder" in wrong.stderr


def test_prompts_from_python(url: str, client_of: Callable[..., httpx.Client]) -> None:
    """The client's methods, against the same gateway."""
    with Client(url) as client:
        made = client.prompts.create("python", {"template": "{text}?"}, metadata={"project": "a"})
        assert client.prompts.get(made.id) == made
        assert [p.id for p in client.prompts.list(name="python", newest=True)] == [made.id]
        assert client.prompts.preview(made.id, {"id": "a", "text": "so"}).text == "user: so?"
        assert client.prompts.delete(made.id).deleted
