"""Untrusted bytes to an RGB image. Runs in decode processes: Pillow and numpy only, cheap to import."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # the last two register their formats

from shared.errors import ItemError

#: The formats that are read, by how their files begin. Everything else is refused unread.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), format)
    for pattern, format in (
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"RIFF.{4}WEBP", "WEBP"),
        (rb"GIF8[79]a", "GIF"),
        (rb"II[*+]\0|MM\0[*+]", "TIFF"),
        (rb"BM", "BMP"),
    )
)

_DEFAULT_MAX_PIXELS = 50_000_000

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

#: EXIF orientation to the transposition that undoes it (1 is upright).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

RGB = NDArray[np.uint8]


def decode(data: bytes, options: dict[str, Any]) -> RGB:
    """Bytes of a PNG, JPEG, WebP, GIF (first frame), BMP or TIFF file to an upright RGB image.

    Returns uint8 [height, width, 3]; transparent pixels are laid on white. Options: `max_pixels` (limit, checked before
    anything is decoded); `resize` (pixels of the shorter side, or [height, width]), `max_size` (pixels of the longer
    side), `interpolation` and `crop` (pixels of the centred square, or [height, width]) as torchvision does on PIL
    images, bit for bit; `grayscale`; `fast_jpeg` (decode a large JPEG at the smallest scale of 1/2, 1/4, 1/8 that is
    enough for `resize`); `drawn_text` (last, see shared.preprocessing.DrawnText).

    Raises ItemError: `empty_media`, `unsupported_format`, `media_too_large` or `corrupt_media`.
    """
    if not data:
        raise ItemError("The image has no bytes.", code="empty_media")
    format = _sniff(data)
    max_pixels = int(options.get("max_pixels", _DEFAULT_MAX_PIXELS))
    draft_for = options["resize"] if options.get("fast_jpeg") and "resize" in options else None
    with _pillow_errors(max_pixels), Image.open(io.BytesIO(data), formats=[format]) as image:
        if draft_for is not None:
            image.draft("RGB", resized_size(image.size, draft_for))
        image.load()
        rgb = _to_rgb(_turn_upright(image))
    if options.get("grayscale"):
        rgb = rgb.convert("L").convert("RGB")
    rgb = _resize_and_crop(rgb, options, max_pixels)
    if options.get("drawn_text"):
        rgb = _with_words(rgb, options["drawn_text"])
    return np.array(rgb)


def _with_words(rgb: Image.Image, drawn: dict[str, Any]) -> Image.Image:
    # What checks these options takes its time to import, and hardly any job has them.
    from shared.drawing import draw_text
    from shared.preprocessing import DrawnText

    return draw_text(rgb, DrawnText.model_validate(drawn))


def resized_size(size: tuple[int, int], resize: int | list[int], max_size: int | None = None) -> tuple[int, int]:
    """(width, height) after torchvision's `resize` of an image of (width, height)."""
    if not isinstance(resize, int):
        if len(resize) == 2:
            return resize[1], resize[0]
        resize = resize[0]
    width, height = size
    short, long = min(size), max(size)
    new_short, new_long = resize, int(resize * long / short)
    if max_size is not None and new_long > max_size:
        new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_short, new_long) if width <= height else (new_long, new_short)


def _sniff(data: bytes) -> str:
    for pattern, format in _SIGNATURES:
        if pattern.match(data):
            return format
    raise ItemError("Not a PNG, JPEG, WebP, GIF, BMP or TIFF image.", code="unsupported_format")


@contextmanager
def _pillow_errors(max_pixels: int) -> Iterator[None]:
    """Turn what Pillow raises on bad bytes into ItemErrors, and its check for decompression bombs into our limit."""
    before = Image.MAX_IMAGE_PIXELS
    # Beyond this Pillow warns, beyond twice as much it raises, and before it creates any decoder.
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # a half may be left over
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (ItemError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ItemError(f"The image has more than {max_pixels} pixels.", code="media_too_large") from error
    except Exception as error:  # on hostile bytes Pillow's parsers raise nearly every built-in error
        raise ItemError(f"The image cannot be decoded: {error}", code="corrupt_media") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  # a broken EXIF block does not spoil the picture
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scale_to_bytes(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _scale_to_bytes(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits to 8: 16-bit by its full range, 32-bit and float by the values that occur."""
    values = np.asarray(image, np.float32)
    if not np.all(np.isfinite(values)):
        raise ItemError("The image has pixels that are not numbers.", code="corrupt_media")
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (float(values.min()), float(values.max()))
    return Image.fromarray(np.rint((values - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8))


def _resize_and_crop(image: Image.Image, options: dict[str, Any], max_pixels: int) -> Image.Image:
    if "resize" in options:
        size = resized_size(image.size, options["resize"], options.get("max_size"))
        if size[0] * size[1] > max_pixels:
            message = f"{image.width}x{image.height} becomes {size[0]}x{size[1]} pixels, more than {max_pixels}."
            raise ItemError(message, code="media_too_large")
        if size != image.size:
            image = image.resize(size, _INTERPOLATIONS[options.get("interpolation", "bilinear")])
    if "crop" in options:
        crop = options["crop"]
        height, width = (crop, crop) if isinstance(crop, int) else crop
        left, top = _margin(image.width, width), _margin(image.height, height)
        image = image.crop((left, top, left + width, top + height))
    return image


def _margin(length: int, crop: int) -> int:
    """Where a centred crop begins; below zero, outside the image, there is black."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
