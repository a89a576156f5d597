"""Pictures: bombs, ruins, strangers, two things at once, and odd ones that must work."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.corpus.cases import OK, Line, media

_RGB = Image.fromarray(np.random.default_rng(5).integers(0, 255, (24, 32, 3), np.uint8))
_HUGE = 50_000


def cases() -> list[Line]:
    """All of them; names begin with `image`."""
    groups: tuple[Callable[[], dict[str, tuple[bytes, str]]], ...] = (_bombs, _ruins, _strangers, _polyglots, _oddities)
    return [media(f"image: {name}", "image", *case) for group in groups for name, case in group().items()]


def _bombs() -> dict[str, tuple[bytes, str]]:
    """Little data that says, or unpacks to, very much."""
    big = b"\0" * (20 * 1024**2)
    frames = [Image.new("P", (2, 2), i % 2) for i in range(3000)]
    return {
        "PNG of 50,000 × 50,000": (_png_of(_HUGE, _HUGE), "media_too_large"),
        "PNG of 2³¹−1 × 2³¹−1": (_png_of(2**31 - 1, 2**31 - 1), "media_too_large"),
        "JPEG of 50,000 × 50,000": (_patched(_saved("JPEG"), b"\xff\xc0\x00\x11\x08", ">HH"), "media_too_large"),
        "GIF of 50,000 × 50,000": (
            b"GIF89a" + struct.pack("<HH", _HUGE, _HUGE) + _saved("GIF")[10:],
            "media_too_large",
        ),
        "WebP of 16,384 × 16,384": (_webp_lossless(16_384, 16_384), "media_too_large"),
        "BMP of 50,000 × 50,000": (_bmp(_HUGE, _HUGE), "media_too_large"),
        "TIFF of 50,000 × 50,000": (_tiff(_HUGE, _HUGE), "media_too_large"),
        "BMP of −50,000 rows": (_bmp(_HUGE, -_HUGE), "media_too_large"),
        "PNG with a compressed text of 20 MiB": (_png(_chunk(b"zTXt", b"k\0\0" + zlib.compress(big))), "corrupt_media"),
        "PNG with an international text of 20 MiB": (
            _png(_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(big))),
            "corrupt_media",
        ),
        "PNG with 80 compressed texts of 1 MiB": (
            _png(_chunk(b"zTXt", b"k\0\0" + zlib.compress(big[: 1024**2 - 1])) * 80),
            "corrupt_media",
        ),
        "PNG with a colour profile of 20 MiB": (_png(_chunk(b"iCCP", b"k\0\0" + zlib.compress(big))), "corrupt_media"),
        "PNG whose pixels unpack to 20 MiB too many": (_png(data=_PIXELS + big), OK),
        "GIF of 3,000 frames": (_animated("GIF", frames), OK),
        "animated PNG of 3,000 frames": (_animated("PNG", frames), OK),
        "TIFF whose pages go in a circle": (_tiff(2, 2, next_page=8), OK),
        "TIFF with 2³²−1 values in a tag": (_tiff(2, 2, extra=(270, 2, 2**32 - 1, 8)), OK),
    }


def _ruins() -> dict[str, tuple[bytes, str]]:
    """What is broken, empty or cut off."""
    png, jpeg = _saved("PNG"), _saved("JPEG")
    return {
        "no bytes": (b"", "empty_media"),
        "PNG signature alone": (png[:8], "corrupt_media"),
        "PNG cut off": (png[:-60], "corrupt_media"),
        "JPEG cut off": (jpeg[:-60], "corrupt_media"),
        "GIF cut off": (_saved("GIF")[:-200], "corrupt_media"),
        "WebP cut off": (_saved("WEBP")[:-60], "corrupt_media"),
        "TIFF cut off": (_saved("TIFF")[:100], "corrupt_media"),
        "BMP cut off": (_saved("BMP")[:-60], "corrupt_media"),
        "PNG with a wrong checksum of its header": (png[:29] + bytes(4) + png[33:], "corrupt_media"),
        "PNG with a wrong checksum of its pixels": (_flipped(png, png.index(b"IDAT") + 20), "corrupt_media"),
        "PNG of 0 × 5": (_png_of(0, 5), "corrupt_media"),
        "JPEG of 0 rows": (_patched(jpeg, b"\xff\xc0\x00\x11\x08", ">HH", (0, 5)), "corrupt_media"),
        "GIF of 0 × 0": (b"GIF89a" + bytes(7) + b";", "corrupt_media"),
        "BMP of 0 × 0": (_bmp(0, 0), "corrupt_media"),
        "PNG of 3 bits": (_png(header=struct.pack(">IIBBBBB", 2, 2, 3, 2, 0, 0, 0)), "corrupt_media"),
        "PNG without pixels": (png[: png.index(b"IDAT") - 4] + _chunk(b"IEND", b""), "corrupt_media"),
        "TIFF whose strips lie outside": (_tiff(2, 2, strip=10**9), "corrupt_media"),
        "TIFF with pixels that are no numbers": (
            _saved("TIFF", Image.fromarray(np.full((4, 4), np.nan, "f4"))),
            "corrupt_media",
        ),
        "noise behind a PNG signature": (png[:8] + np.random.default_rng(1).bytes(500), "corrupt_media"),
        "noise": (np.random.default_rng(2).bytes(500), "unsupported_format"),
    }


def _strangers() -> dict[str, tuple[bytes, str]]:
    """What Pillow might read, or hand to another program, and what is refused unread."""
    contents = {
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "SVG of entities": b'<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
        "EPS with a preview": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe",
        "PDF": b"%PDF-1.7\n1 0 obj\n",
        "PDF before a JPEG": b"%PDF-1.7\n" + _saved("JPEG"),
        "Windows metafile": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "PSD": b"8BPS\0\1" + bytes(40),
        "icon": b"\0\0\1\0\1\0" + bytes(40),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
        "FITS": b"SIMPLE  =                    T" + bytes(2850),
        "PPM": b"P6 99999 99999 255\n",
        "Flash": b"FWS\x09" + bytes(40),
        "ImageMagick script": b"push graphic-context\nfill 'url(https://127.0.0.1/)'\n",
        "program": b"\x7fELF\2\1\1" + bytes(57),
    }
    return {name: (data, "unsupported_format") for name, data in contents.items()}


def _polyglots() -> dict[str, tuple[bytes, str]]:
    """A picture first of all; what else it is is nobody's business here."""
    archive = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    page = b"<script>alert(1)</script>"
    return {
        "GIF and JavaScript": (_saved("GIF")[:-1] + b"!\xfe\x0d*/=0;alert(1)\0;", OK),
        "JPEG and zip": (_saved("JPEG") + archive, OK),
        "PNG and HTML in a text": (_png(_chunk(b"tEXt", b"Comment\0" + page)), OK),
        "PNG and HTML behind": (_saved("PNG") + page, OK),
        "PNG and PHP in its pixels": (_png(_chunk(b"tEXt", b"x\0<?php system($_GET[0]);?>")), OK),
        "BMP and shell script": (_saved("BMP") + b"\n#!/bin/sh\nid\n", OK),
    }


def _oddities() -> dict[str, tuple[bytes, str]]:
    """Unusual, and good."""
    grey16 = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32) * 85)
    exif = Image.Exif()
    exif[0x0112] = 9  # an orientation that there is not
    made: dict[str, bytes] = {
        "16-bit grey PNG": _saved("PNG", grey16),
        "16-bit grey TIFF": _saved("TIFF", grey16),
        "32-bit TIFF": _saved("TIFF", Image.fromarray(np.arange(768, dtype=np.int32).reshape(24, 32))),
        "float TIFF": _saved("TIFF", Image.fromarray(np.linspace(-1, 9, 768, dtype=np.float32).reshape(24, 32))),
        "CMYK JPEG": _saved("JPEG", _RGB.convert("CMYK")),
        "CMYK TIFF": _saved("TIFF", _RGB.convert("CMYK")),
        "grey JPEG": _saved("JPEG", _RGB.convert("L")),
        "progressive JPEG": _saved("JPEG", _RGB, progressive=True),
        "YCbCr TIFF": _saved("TIFF", _RGB.convert("YCbCr")),
        "Lab TIFF": _saved("TIFF", _RGB.convert("LAB")),
        "palette PNG with a transparent colour": _saved("PNG", _RGB.convert("P"), transparency=3),
        "palette PNG with transparencies": _saved("PNG", _RGB.convert("P"), transparency=bytes(range(256))),
        "RGB PNG with a transparent colour": _saved("PNG", _RGB, transparency=(1, 2, 3)),
        "one-bit PNG": _saved("PNG", _RGB.convert("1")),
        "one-bit fax TIFF": _saved("TIFF", _RGB.convert("1"), compression="group4"),
        "grey PNG with alpha": _saved("PNG", _RGB.convert("LA")),
        "lossless WebP with alpha": _saved("WEBP", _RGB.convert("RGBA"), lossless=True),
        "animated WebP": _animated("WEBP", [_RGB, _RGB.rotate(90)]),
        "GIF with a transparent colour": _saved("GIF", _RGB.convert("P"), transparency=0),
        "1 × 1": _saved("PNG", _RGB.crop((0, 0, 1, 1))),
        "1 × 20,000": _saved("PNG", Image.new("L", (1, 20_000))),
        "orientation 9": _saved("JPEG", _RGB, exif=exif),
        "broken EXIF": _saved("JPEG", _RGB, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "broken colour profile": _saved("PNG", _RGB, icc_profile=b"no profile"),
        "BMP of top-down rows": _bmp(2, -2),
    }
    return {name: (data, OK) for name, data in made.items()}


def _saved(format: str, image: Image.Image = _RGB, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def _animated(format: str, frames: list[Image.Image]) -> bytes:
    return _saved(format, frames[0], save_all=True, append_images=frames[1:], duration=10)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_PIXELS = (b"\0" + b"\x10\x20\x30" * 2) * 2


def _png(
    chunks: bytes = b"", *, header: bytes = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0), data: bytes = _PIXELS
) -> bytes:
    """2 × 2 pixels, with other chunks before them."""
    pixels = _chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + chunks + pixels + _chunk(b"IEND", b"")


def _png_of(width: int, height: int) -> bytes:
    return _png(header=struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def _patched(data: bytes, mark: bytes, format: str, values: tuple[int, int] = (_HUGE, _HUGE)) -> bytes:
    place = data.index(mark) + len(mark)
    packed = struct.pack(format, *values)
    return data[:place] + packed + data[place + len(packed) :]


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _webp_lossless(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<IBI", 5 + 40, 0x2F, bits) + bytes(41)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _bmp(width: int, height: int) -> bytes:
    pixels = bytes(range(16))
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + info + pixels


def _tiff(
    width: int, height: int, *, strip: int = 200, next_page: int = 0, extra: tuple[int, int, int, int] | None = None
) -> bytes:
    """Grey, uncompressed, one strip."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, strip)]
    tags += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height)] + ([extra] if extra else [])
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    data = b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", next_page)
    return data.ljust(200, b"\0") + b"\x10\x20\x30\x40"
