"""What extraction makes of an encoder that refuses an item in a way of its own."""

import pytest

from shared.catalog import EncoderSpec
from shared.errors import ItemError
from shared.ml.decoding import preprocess_item
from shared.ml.encoders.hashing import HashingEncoder
from shared.queues import Modality

SPEC = EncoderSpec(id="picky", modality=Modality.TEXT, dimension=4, loader="hashing")


class Picky(HashingEncoder):
    """Refuses the letter x as a library would."""

    def preprocess(self, media: object) -> object:
        if media == "x":
            raise ValueError("x is not supported")
        return super().preprocess(media)  # type: ignore[arg-type]  # whatever the base takes


def test_a_refused_item_is_that_items_error() -> None:
    """Any exception becomes the item's, with what the library said; other items pass."""
    encoder = Picky(SPEC, None, "cpu", "fp32")
    assert preprocess_item(encoder, "y") is not None
    with pytest.raises(ItemError, match="x is not supported") as caught:
        preprocess_item(encoder, "x")
    assert caught.value.error_code == "unsuitable_media"
