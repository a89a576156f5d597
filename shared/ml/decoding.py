"""From the bytes of items to the inputs of an encoder, ahead of the model: decoded elsewhere, preprocessed here."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from shared.errors import ItemError
from shared.ml.encoders.base import Encoder
from shared.settings import Limits

K = TypeVar("K")

#: Items under way in the decode processes at once.
DECODING = 8


class Decoder(Protocol):
    """Turns the bytes of one item into what the encoder's `preprocess` takes."""

    def submit(self, data: bytes, options: dict[str, Any], *, urgent: bool = False) -> "Future[Any]":
        """A future of the decoded item, or of its ItemError. What is urgent goes before what is not."""
        ...


def decode_limits(limits: Limits) -> dict[str, Any]:
    """The decode options that keep one item within what is allowed."""
    return {
        "max_pixels": limits.image_pixels,
        "max_seconds": limits.audio_seconds,
        "max_bytes": limits.text_bytes,
    }


def decode_ahead(
    decoder: Decoder,
    contents: Mapping[K, bytes | ItemError],
    encoder: Encoder,
    options: dict[str, Any],
    *,
    urgent: bool = False,
) -> Iterator[tuple[K, tuple[Any, int] | ItemError]]:
    """Each content's input for the encoder with the bytes that it took decoded, or the ItemError that says why not."""
    running: deque[tuple[K, Future[Any]]] = deque()
    for key, data in contents.items():
        if isinstance(data, ItemError):
            yield key, data
            continue
        running.append((key, decoder.submit(data, options, urgent=urgent)))
        if len(running) >= DECODING:
            yield _first(running, encoder)
    while running:
        yield _first(running, encoder)


def _first(running: deque[tuple[K, "Future[Any]"]], encoder: Encoder) -> tuple[K, tuple[Any, int] | ItemError]:
    key, future = running.popleft()
    try:
        decoded = future.result()
        return key, (preprocess_item(encoder, decoded), int(getattr(decoded, "nbytes", len(decoded))))
    except ItemError as error:
        return key, error


def preprocess_item(encoder: Encoder, decoded: Any) -> Any:
    """The model's input. Raises ItemError whatever goes wrong: libraries' processors refuse odd items in many ways."""
    try:
        return encoder.preprocess(decoded)
    except ItemError:
        raise
    except Exception as error:
        message = f"The encoder cannot take this item: {type(error).__name__}: {error}"
        raise ItemError(message[:500], code="unsuitable_media") from error
