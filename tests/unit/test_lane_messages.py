"""What passes through Redis between the gateway and the lanes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from shared.items import MediaLocation
from shared.lanes.messages import (
    EncodeItems,
    Failed,
    LaneAnswer,
    LaneRequest,
    PredictRows,
    Rows,
)
from shared.queues import Modality, Stage

FLOATS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5))


@given(FLOATS)
def test_vectors_come_out_bit_by_bit_as_they_went_in(array: NDArray[np.float32]) -> None:
    there = Rows.model_validate_json(Rows.of(array).model_dump_json()).array()
    assert there.dtype == np.float32
    assert there.shape == array.shape
    assert there.tobytes() == array.tobytes()


@pytest.mark.parametrize("data", ["AAAA", "not base64", "AAAAAAAAAAA="])
def test_data_of_another_shape_is_an_error(data: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever numpy or base64 say
        Rows(shape=(1, 3), data=data).array()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.booleans())
def test_requests_come_out_as_they_went_in(texts: list[str], predict: bool) -> None:
    payload: EncodeItems | PredictRows = EncodeItems(
        items=[*texts, MediaLocation(key="blobs/x", size=3)], preprocessing={"lowercase": True}
    )
    if predict:
        rows = Rows.of(np.ones((2, 3), np.float32))
        payload = PredictRows(vectors={Modality.TEXT: rows}, mask={Modality.TEXT: [True, False]}, contributions=True)
    request = LaneRequest(
        request_id="ask-1", tenant="t", stage=Stage.TEXT, model="m", deadline=1.5, reply_to="a", payload=payload
    )
    assert LaneRequest.model_validate_json(request.model_dump_json()) == request


def test_answers_say_what_they_are() -> None:
    failed = LaneAnswer(request_id="ask-1", result=Failed(code="boom", message="It broke."))
    assert LaneAnswer.model_validate_json(failed.model_dump_json()) == failed
    with pytest.raises(ValidationError):
        LaneAnswer.model_validate_json('{"request_id": "ask-1", "result": {"kind": "surprise"}}')
