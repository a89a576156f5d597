"""The lines of a batch's input file: what is taken as a request, and what is wrong with the rest."""

import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.batches.lines import LONGEST_ID, MOST_WRONG, Requests
from services.dispatcher.manifests.jsonl import read_jsonl
from shared.batches import BatchOf, Endpoint

ASKED = BatchOf(endpoint=Endpoint.EMBEDDINGS, completion_window="24h", model="m")


def read(content: bytes) -> tuple[list[str], list[tuple[int, str]]]:
    """The ids of the requests, and by line the code of what is wrong."""
    requests = Requests(read_jsonl(io.BytesIO(content), 10_000), ASKED)  # type: ignore[arg-type]  # a binary file
    ids = [request.custom_id for request in requests]
    assert requests.count == len(ids)
    return ids, [(failure.item_index + 1, failure.code) for failure in requests.wrong]


def line(custom_id: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=8))
def test_each_line_is_a_request_or_an_error(ids: list[str]) -> None:
    taken, wrong = read("\n".join(json.dumps(line(id)) for id in ids).encode())
    good = [id for id in ids if id and "\x00" not in id]
    assert taken == list(dict.fromkeys(good))
    assert len(taken) + len(wrong) == len(ids)
    assert {code for _, code in wrong} <= {"invalid_custom_id", "duplicate_custom_id"}


@given(st.binary(max_size=200))
def test_garbage_is_said_and_never_raised(garbage: bytes) -> None:
    taken, wrong = read(garbage)
    assert taken == []
    assert {code for _, code in wrong} <= {"invalid_json_line", "invalid_custom_id"}


def test_what_is_too_much() -> None:
    assert read(json.dumps(line("x" * (LONGEST_ID + 1))).encode()) == ([], [(1, "invalid_custom_id")])
    taken, wrong = read(b"{\n" * (MOST_WRONG + 7) + json.dumps(line("unseen")).encode())
    assert (taken, len(wrong)) == ([], MOST_WRONG)
