"""Decoding of images: equal to torchvision's preprocessing, every format and mode, and every kind of bad input."""

import io
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from services.image.preprocess import decode
from shared.errors import ItemError
from shared.ml.torchvision_shim import make_torchvision_importable

make_torchvision_importable()
from torchvision.transforms import InterpolationMode, functional  # noqa: E402  # importable from here on


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth, colourful picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def code_of(data: bytes, **options: Any) -> str:
    with pytest.raises(ItemError) as caught:
        decode(data, options)
    return caught.value.error_code


def outcome(data: bytes) -> str:
    """`decoded`, or the code of the error; anything but an ItemError passes through."""
    try:
        decoded = decode(data, {"max_pixels": 1_000_000})
    except ItemError as error:
        return error.error_code
    return "decoded" if decoded.dtype == np.uint8 and decoded.shape[2] == 3 else "malformed"


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.integers(1, 96),
    crop=st.integers(1, 96),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_equals_torchvision_on_pil_images_bit_for_bit(
    width: int, height: int, resize: int, crop: int, interpolation: str
) -> None:
    image = photo(width, height)
    expected = functional.center_crop(
        functional.resize(image, [resize], InterpolationMode(interpolation)), [crop, crop]
    )
    options = {"resize": resize, "crop": crop, "interpolation": interpolation}
    decoded = decode(encoded(image, "PNG"), options)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(expected))


@pytest.mark.parametrize("size", [(200, 50), (50, 200), (64, 64)])
def test_max_size_and_exact_size_equal_torchvision(size: tuple[int, int]) -> None:
    image = photo(*size)
    bounded = decode(encoded(image, "PNG"), {"resize": 40, "max_size": 90})
    np.testing.assert_array_equal(bounded, np.asarray(functional.resize(image, [40], max_size=90)))
    exact = decode(encoded(image, "PNG"), {"resize": [30, 70], "crop": [20, 60]})
    expected = functional.center_crop(functional.resize(image, [30, 70]), [20, 60])
    np.testing.assert_array_equal(exact, np.asarray(expected))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_lossless_formats_give_back_the_pixels(format: str, options: dict[str, Any]) -> None:
    image = photo(61, 47)
    np.testing.assert_array_equal(decode(encoded(image, format, **options), {}), np.asarray(image))


@pytest.mark.parametrize(("format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})])
def test_lossy_formats_equal_pillow(format: str, options: dict[str, Any]) -> None:
    data = encoded(photo(61, 47), format, quality=80, **options)
    with Image.open(io.BytesIO(data)) as reference:
        np.testing.assert_array_equal(decode(data, {}), np.asarray(reference.convert("RGB")))


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *(("PNG", "L"), ("PNG", "1"), ("PNG", "P"), ("JPEG", "L"), ("JPEG", "CMYK"), ("TIFF", "CMYK"), ("TIFF", "LAB")),
        *(("TIFF", "YCbCr"), ("GIF", "L"), ("GIF", "P"), ("BMP", "1"), ("BMP", "L"), ("WEBP", "L")),
    ],
)
def test_opaque_modes_become_rgb_as_in_pillow(format: str, mode: str) -> None:
    image = photo(40, 30)
    data = encoded(image if mode == "LAB" else image.convert(mode), format)
    with Image.open(io.BytesIO(data)) as reference:
        np.testing.assert_array_equal(decode(data, {}), np.asarray(reference.convert("RGB")))


def test_files_with_several_pictures_give_the_first() -> None:
    frames = [Image.new("RGB", (12, 8), color) for color in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        lossless = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
        assert decode(data, {}).reshape(-1, 3).tolist() == [[255, 0, 0]] * 96
    mpo = encoded(photo(20, 20, 1), "MPO", save_all=True, append_images=[photo(20, 20, 2)], quality=95)
    with Image.open(io.BytesIO(mpo)) as reference:
        np.testing.assert_array_equal(decode(mpo, {}), np.asarray(reference.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(format: str) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 100, 0, 255)
    pixels[0, 1] = (200, 100, 0, 0)
    pixels[1, 0] = (200, 100, 0, 51)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    decoded = decode(encoded(Image.fromarray(pixels), format, **options), {})
    assert decoded[0].tolist() == [[200, 100, 0], [255, 255, 255]]
    assert decoded[1, 0].tolist() == [244, 224, 204]


def test_other_kinds_of_transparency() -> None:
    grey = encoded(Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8), "LA"), "PNG")
    assert decode(grey, {})[0].tolist() == [[90] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    for format in ("PNG", "GIF"):
        assert decode(encoded(palette, format, transparency=1), {})[0].tolist() == [[10, 20, 30], [255] * 3]
    keyed = encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(4, 5, 6))
    assert decode(keyed, {})[0].tolist() == [[1, 2, 3], [255] * 3]


def test_sixteen_bits_are_scaled_by_their_range() -> None:
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        assert decode(encoded(Image.fromarray(values), format), {})[0, :, 0].tolist() == [0, 1, 100, 255]


def test_wider_greyscale_is_scaled_by_its_values() -> None:
    for values in (np.array([[-10, 0, 90]], np.int32), np.array([[-1.0, -0.9, 0.0]], np.float32)):
        decoded = decode(encoded(Image.fromarray(values), "TIFF"), {})
        assert decoded[0, 0].tolist() == [0] * 3
        assert decoded[0, 2].tolist() == [255] * 3
        assert decoded[0, 1, 0] in (25, 26)
    flat = decode(encoded(Image.fromarray(np.full((2, 2), 7.5, np.float32)), "TIFF"), {})
    assert not flat.any()
    assert code_of(encoded(Image.fromarray(np.array([[np.nan, 1]], np.float32)), "TIFF")) == "corrupt_media"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(32, 24), format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data, {}), expected)


def test_nonsense_in_exif_does_not_spoil_the_picture() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage"):
        data = encoded(photo(16, 16), "JPEG", exif=exif)
        assert decode(data, {}).shape == (16, 16, 3)
    nine = Image.Exif()
    nine[0x0112] = 9
    assert decode(encoded(photo(16, 8), "JPEG", exif=nine), {}).shape == (8, 16, 3)


def test_grayscale() -> None:
    image = photo(20, 20)
    decoded = decode(encoded(image, "PNG"), {"grayscale": True})
    np.testing.assert_array_equal(decoded, np.repeat(np.asarray(image.convert("L"))[:, :, None], 3, axis=2))


def test_fast_jpeg_decodes_at_reduced_scale_and_is_off_by_default() -> None:
    data = encoded(photo(1600, 1200), "JPEG", quality=90)
    recipe = {"resize": 256, "crop": 224}
    exact, fast = decode(data, recipe), decode(data, recipe | {"fast_jpeg": True})
    with Image.open(io.BytesIO(data)) as image:
        expected = functional.center_crop(functional.resize(image, [256]), [224, 224])
    np.testing.assert_array_equal(exact, np.asarray(expected))
    assert fast.shape == exact.shape
    assert not np.array_equal(fast, exact)
    assert np.abs(fast.astype(int) - exact).mean() < 4
    small = encoded(photo(300, 280), "JPEG")
    np.testing.assert_array_equal(decode(small, recipe), decode(small, recipe | {"fast_jpeg": True}))


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\0\0\0,\0\0\0\0" + size + b"\0\x02\0;"


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def webp_header(width: int, height: int) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<II", 10, 0) + sizes
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def tiff_header(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, 1)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)


HEADERS = [png_header, jpeg_header, gif_header, bmp_header, webp_header, tiff_header]


@pytest.mark.parametrize("header", HEADERS)
def test_bombs_are_refused_by_their_header(header: Any) -> None:
    """The files hold no pixels: had decoding begun, they would be corrupt, not too large."""
    assert code_of(header(16_000, 16_000)) == "media_too_large"
    assert code_of(header(9_000, 9_000)) == "media_too_large"
    assert code_of(header(300, 200), max_pixels=59_999) == "media_too_large"
    if header is not jpeg_header and header is not gif_header:
        assert code_of(header(300, 200), max_pixels=60_000) == "corrupt_media"


def test_the_limit_of_pixels_is_exact_and_pillows_own_is_left_alone() -> None:
    data = encoded(photo(30, 20), "PNG")
    before = Image.MAX_IMAGE_PIXELS
    assert decode(data, {"max_pixels": 600}).shape == (20, 30, 3)
    assert code_of(data, max_pixels=599) == "media_too_large"
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_thin_image_may_not_grow_beyond_the_limit() -> None:
    data = encoded(Image.new("RGB", (20_000, 1)), "PNG")
    assert code_of(data, resize=256) == "media_too_large"
    assert decode(data, {"resize": 32, "crop": 32}).shape == (32, 32, 3)


def test_compressed_text_bombs() -> None:
    data = encoded(photo(8, 8), "PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    assert code_of(data[:33] + chunk + data[33:]) == "corrupt_media"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(format: str) -> None:
    data = encoded(photo(64, 64), format)
    for length in (len(data) // 2, len(data) * 9 // 10):
        assert code_of(data[:length]) == "corrupt_media"
    assert code_of(data[:12] + b"nonsense" * 9) == "corrupt_media"


def test_nothing_and_other_formats() -> None:
    assert code_of(b"") == "empty_media"
    others = [b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"text", b"\0", b"P6 1 1 255 abc"]
    others += [b"%!PS-Adobe-3.0 EPSF-3.0", b"\0\0\1\0", b"8BPS", b"RIFF\4\0\0\0WAVE", b"\x89PN"]
    others += [encoded(photo(8, 8), format) for format in ("ICO", "PPM", "EPS", "JPEG2000", "TGA")]
    for data in others:
        assert code_of(data) == "unsupported_format"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_give_an_image_or_a_known_error(format: str) -> None:
    data = encoded(photo(40, 40), format)
    chance = random.Random(format)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        assert outcome(bytes(damaged)) in {"decoded", "corrupt_media", "unsupported_format", "media_too_large"}


def test_decoding_imports_no_torch() -> None:
    heavy = "{'torch', 'torchvision', 'transformers', 'librosa', 'scipy', 'pydantic'}"
    command = f"import sys, services.image.preprocess; sys.exit(str({heavy} & set(sys.modules) or ''))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
