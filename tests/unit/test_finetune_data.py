"""Feature sets as the fusion pool writes them, read for training."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.finetune.data import read_parts
from services.fusion.parquet import feature_schema, write_part
from shared.errors import JobError
from shared.items import PlannedItem
from shared.queues import Modality


def part(items: list[PlannedItem], text: np.ndarray, present: list[bool]) -> pa.Table:
    """A part of a feature set of texts."""
    schema = feature_schema({"text": text.shape[1]}, {})
    data = write_part(schema, items, {"text": text.astype(np.float32)}, {"text": np.array(present)})
    return pq.read_table(io.BytesIO(data))


def item(index: int, **fields: object) -> PlannedItem:
    return PlannedItem.model_validate({"index": index, "id": f"i{index}", "text": "a", **fields})


def test_parts_become_one_dataset() -> None:
    """Rows in order; a null vector is zeros that are not present; a modality without a column is nowhere."""
    first = part(
        [item(0, label=["a", "b"], split="test"), item(1, target=2.5)], np.array([[1, 2], [3, 4]]), [True, False]
    )
    second = part([item(2, target="five"), item(3, target=7)], np.array([[5, 6], [7, 8]]), [True, True])
    data = read_parts([first, second], {Modality.IMAGE: 3, Modality.TEXT: 2})
    assert data.ids == ["i0", "i1", "i2", "i3"]
    assert list(data.dimensions.items()) == [(Modality.TEXT, 2), (Modality.IMAGE, 3)]
    np.testing.assert_array_equal(data.vectors[Modality.TEXT], [[1, 2], [0, 0], [5, 6], [7, 8]])
    np.testing.assert_array_equal(data.present[Modality.TEXT], [True, False, True, True])
    assert not data.present[Modality.IMAGE].any()
    assert data.labels == [["a", "b"], [], [], []]
    np.testing.assert_array_equal(data.targets, [np.nan, 2.5, np.nan, 7])
    assert data.text_targets == {"i2"}
    assert data.splits == ["test", None, None, None]


def test_vectors_that_are_not_finite_are_missing() -> None:
    """They would make every loss NaN."""
    data = read_parts([part([item(0), item(1)], np.array([[np.inf, 1], [1, 2]]), [True, True])], {Modality.TEXT: 2})
    np.testing.assert_array_equal(data.present[Modality.TEXT], [False, True])
    assert np.isfinite(data.vectors[Modality.TEXT]).all()


def test_other_dimensions_are_an_error() -> None:
    """Parts of another feature set must not slip in."""
    with pytest.raises(JobError) as caught:
        read_parts([part([item(0)], np.ones((1, 2)), [True])], {Modality.TEXT: 3})
    assert caught.value.error_code == "dimension_mismatch"


def test_nothing_is_a_dataset_too() -> None:
    """Whoever trains says that there is nothing."""
    assert len(read_parts([], {Modality.TEXT: 3})) == 0
