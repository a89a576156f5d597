"""Words on pictures: where they should be, in any of the font's scripts, the same every time; never for free in a
fingerprint."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.image.preprocess import RGB, decode
from shared.drawing import draw_text
from shared.jobs.protocol import protocol_of
from shared.preprocessing import DrawnText, Preprocessing
from shared.queues import Stage

GREY = (128, 128, 128)


def png(width: int, height: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (width, height), GREY).save(target, "PNG")
    return target.getvalue()


def drawn(text: str, size: tuple[int, int] = (160, 120), **options: object) -> RGB:
    return decode(png(*size), {"drawn_text": {"text": text, **options}})


def changed(picture: RGB) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Rows and columns of the pixels that are not grey any more."""
    rows, columns = np.nonzero((picture != 128).any(axis=2))
    return rows, columns


@pytest.mark.parametrize("text", ["a photo of a cat", "这是谣言吗？", "これはデマですか", "이것은 소문입니까", "слух?"])
@pytest.mark.parametrize(("place", "low", "high"), [("top", 0, 0.27), ("bottom", 0.73, 1), ("middle", 0.35, 0.65)])
def test_words_stand_in_their_band_of_the_centred_square(text: str, place: str, low: float, high: float) -> None:
    rows, columns = changed(drawn(text, place=place))
    assert low * 120 <= rows.min() <= rows.max() <= high * 120
    assert 20 <= columns.min() <= columns.max() < 140
    assert columns.max() - columns.min() > 10


def test_the_same_words_are_the_same_pixels_and_others_are_not() -> None:
    first = drawn("真的")
    assert (first == drawn("真的")).all()
    assert (first != drawn("假的")).any()
    assert (first != drawn("真的", colour="#ff0000")).any()


def test_words_are_drawn_on_what_was_resized_and_cropped() -> None:
    """Letters are as large as the encoder's picture lets them be, not as the original did."""
    options = {"resize": 64, "crop": 56, "drawn_text": {"text": "cat", "place": "top"}}
    rows, columns = changed(decode(png(400, 300), options))
    assert rows.max() < 20
    assert columns.max() < 56


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=256).filter(str.strip),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_any_words_fit_any_picture(text: str, width: int, height: int) -> None:
    """Or are cut off at its edge; nothing is raised."""
    picture = draw_text(Image.new("RGB", (width, height)), DrawnText(text=text))
    assert picture.size == (width, height)


def test_fingerprints_know_of_words_and_stay_without_them() -> None:
    """What options are in a fingerprint is what is serialised."""
    plain = Preprocessing().model_dump(mode="json")
    assert json.dumps(plain["image"], sort_keys=True) == '{"fast_jpeg": false, "grayscale": false}'
    asked = Preprocessing.model_validate({"image": {"drawn_text": {"text": "看"}}}).model_dump(mode="json")
    assert asked["image"]["drawn_text"]["text"] == "看"
    assert Preprocessing.model_validate(asked).model_dump(mode="json") == asked
    assert protocol_of(Stage.IMAGE, {"preprocessing": asked}) > protocol_of(Stage.IMAGE, {"preprocessing": plain})
