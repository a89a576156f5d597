"""Interactive requests in an extraction pool: several callers in one batch, each with its own answer."""

from typing import Any, cast

import numpy as np
import pytest
from pydantic import SecretStr

from services.text.tasks import TextDecoder
from shared.catalog import Catalog, EncoderSpec
from shared.errors import DeadlineError, JobError
from shared.items import MediaLocation
from shared.lanes.messages import EncodeItems, LaneRequest
from shared.ml import encode_lane
from shared.ml.encode_lane import EncodeLane
from shared.ml.encoders.hashing import HashingEncoder
from shared.ml.models import ModelCache
from shared.queues import Modality, Queue, Stage
from shared.settings import Settings
from shared.testing.memory_store import MemoryStore
from shared.worker.context import WorkerContext
from shared.worker.control import Control

SPECS = [
    EncoderSpec(id="hash-text", modality=Modality.TEXT, dimension=4, loader="hashing"),
    EncoderSpec(id="hash-image", modality=Modality.IMAGE, dimension=4, loader="hashing"),
]


@pytest.fixture
def lane() -> EncodeLane:
    """The text pool's lane, without servers."""
    settings = Settings(
        mode="development",
        database_url=SecretStr("x"),
        redis_url=SecretStr("x"),
        s3_endpoint="x",
        s3_access_key=SecretStr("x"),
        s3_secret_key=SecretStr("x"),
    )
    nothing: Any = None
    store = cast(Any, MemoryStore())
    context = WorkerContext(settings, nothing, store, nothing, Catalog(SPECS), Queue.TEXT, "worker")
    return EncodeLane(context, Modality.TEXT, TextDecoder(), ModelCache(2**30))


def request(*items: str | MediaLocation, model: str = "hash-text") -> LaneRequest:
    return LaneRequest(
        request_id="ask-1", tenant="t", stage=Stage.TEXT, model=model, deadline=0, reply_to="a",
        payload=EncodeItems(items=list(items), preprocessing={"lowercase": True}),
    )  # fmt: skip


def expected(text: str) -> np.ndarray:
    encoder = HashingEncoder(SPECS[0])
    return encoder.encode([encoder.preprocess(text)])[0]


def test_callers_share_a_batch_and_get_their_own_rows(lane: EncodeLane) -> None:
    control = Control(0)
    lane.load(request(), control)
    assert lane.models() == ["hash-text"]
    prepared = [lane.prepare(one, control) for one in (request("A", "", "b"), request(), request("c"))]
    assert [one.weight for one in prepared] == [2 / 1024, 0, 1 / 1024]
    answers = lane.run([one.value for one in prepared])
    rows = [answer.vectors.array() for answer in answers]
    assert [array.shape for array in rows] == [(3, 4), (0, 4), (1, 4)]
    np.testing.assert_array_equal(rows[0], [expected("a"), np.zeros(4), expected("b")])
    np.testing.assert_array_equal(rows[2], [expected("c")])
    assert {index: fault.code for index, fault in answers[0].faults.items()} == {1: "empty_text"}
    assert not answers[2].faults


def test_what_the_model_cannot_do_is_the_right_items_fault(lane: EncodeLane, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: HashingEncoder, batch: list[bytes]) -> np.ndarray:
        bad = self.preprocess("bad")
        return np.array([[np.nan if one == bad else 1.0] * 4 for one in batch], np.float32)

    monkeypatch.setattr(HashingEncoder, "encode", encode)
    prepared = [lane.prepare(one, Control(0)) for one in (request("good", " "), request("good", "", "bad"))]
    first, second = lane.run([one.value for one in prepared])
    assert {index: fault.code for index, fault in first.faults.items()} == {1: "empty_text"}
    assert {index: fault.code for index, fault in second.faults.items()} == {1: "empty_text", 2: "non_finite_vector"}


def test_what_is_too_much_to_wait_for_is_refused(lane: EncodeLane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_lane, "DECODED_BYTES", 10)
    prepared = lane.prepare(request("12345", "1234567", "12345"), Control(0))
    (answer,) = lane.run([prepared.value])
    assert {index: fault.code for index, fault in answer.faults.items()} == {1: "media_too_large"}
    assert prepared.bytes == 10


def test_an_encoder_of_another_modality_is_none(lane: EncodeLane) -> None:
    with pytest.raises(JobError) as caught:
        lane.load(request(model="hash-image"), Control(0))
    assert caught.value.error_code == "unknown_encoder"


def test_preparing_stops_when_nobody_waits(lane: EncodeLane) -> None:
    control = Control(0)
    control.stop(DeadlineError)
    with pytest.raises(DeadlineError):
        lane.prepare(request("a"), control)
