"""Sounds: bombs, ruins, strangers, and odd ones that must work."""

import io
import struct
from collections.abc import Callable

import numpy as np
import soundfile

from tests.corpus.cases import OK, Line, media

_NOISE = np.random.default_rng(6).uniform(-0.5, 0.5, 4000)
_MANY_HOURS = 3 * 3600 * 1000


def cases() -> list[Line]:
    """All of them; names begin with `audio`."""
    groups: tuple[Callable[[], dict[str, tuple[bytes, str]]], ...] = (_bombs, _ruins, _headers, _strangers, _oddities)
    return [media(f"audio: {name}", "audio", *case) for group in groups for name, case in group().items()]


def _bombs() -> dict[str, tuple[bytes, str]]:
    """Little data that says, or unpacks to, very much."""
    silence = np.zeros(_MANY_HOURS, np.int16)
    flac = _saved("FLAC", samples=silence, rate=1000)
    samples = int.from_bytes(flac[18:26], "big") & ~(2**36 - 1)
    unknown = flac[:18] + samples.to_bytes(8, "big") + flac[26:]
    return {
        "FLAC of three hours of silence": (flac, "media_too_large"),
        "FLAC of three hours that does not say so": (unknown, "media_too_large"),
        "Vorbis of half an hour of silence": (_saved("OGG", samples=silence[:1_800_000], rate=1000), "media_too_large"),
        "WAV that says hours and has them not": (_wav(data_bytes=2 * 8000 * 36_000), "corrupt_media"),
        "WAV of 1 byte a second": (_wav(rate=1), "unsupported_format"),
        "RF64 that says 2⁴⁰ bytes and has 400": (_rf64(2**40), OK),
    }


def _ruins() -> dict[str, tuple[bytes, str]]:
    """What is broken, empty or cut off."""
    silent = np.zeros(0, np.float32)
    odd = np.array([0.1, np.nan, 0.2], np.float32)
    infinite = np.array([0.1, np.inf, 0.2], np.float32)
    return {
        "no bytes": (b"", "empty_media"),
        "RIFF alone": (b"RIFF", "unsupported_format"),
        "WAV header alone": (_wav()[:44], "corrupt_media"),
        "WAV of no samples": (_saved("WAV", samples=silent), "empty_media"),
        "FLAC of no samples": (_saved("FLAC", samples=silent), "empty_media"),
        "WAV cut off": (_saved("WAV")[:-500], "corrupt_media"),
        "FLAC cut off": (_saved("FLAC")[:-500], "corrupt_media"),
        "Vorbis cut off": (_saved("OGG")[:-1000], "empty_media"),
        "MP3 cut off": (_saved("MP3")[:300], "corrupt_media"),
        "MP3 of its ID3 tag alone": (b"ID3\4\0\0\0\0\0\x0a" + bytes(10), "corrupt_media"),
        "ID3 tag of 256 MiB that is not there": (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(90), "corrupt_media"),
        "WAV with a sample that is no number": (_saved("WAV", samples=odd, subtype="FLOAT"), "corrupt_media"),
        "WAV with an infinite sample": (_saved("WAV", samples=infinite, subtype="FLOAT"), "corrupt_media"),
        "noise behind a FLAC signature": (b"fLaC" + np.random.default_rng(3).bytes(500), "corrupt_media"),
        "noise behind an Ogg signature": (b"OggS" + np.random.default_rng(4).bytes(500), "corrupt_media"),
        "noise behind an MP3 frame": (b"\xff\xfb" + np.random.default_rng(5).bytes(500), "corrupt_media"),
        "noise": (b"\x01" + np.random.default_rng(6).bytes(500), "unsupported_format"),
    }


def _headers() -> dict[str, tuple[bytes, str]]:
    """WAV files whose headers make no sense."""
    return {
        "0 Hz": (_wav(rate=0), "corrupt_media"),
        "10⁹ Hz": (_wav(rate=10**9), "unsupported_format"),
        "2³²−1 Hz": (_wav(rate=2**32 - 1), "corrupt_media"),
        "0 channels": (_wav(channels=0), "corrupt_media"),
        "65,535 channels": (_wav(channels=65_535), "corrupt_media"),
        "0 bits": (_wav(bits=0), "corrupt_media"),
        "65,535 bits": (_wav(bits=65_535), "corrupt_media"),
        "unknown codec": (_wav(codec=0x4242), "corrupt_media"),
        "chunk of 4 GiB before the samples": (_wav(before=b"LIST" + struct.pack("<I", 2**32 - 1)), "corrupt_media"),
        "samples before the header": (_wav(swapped=True), "corrupt_media"),
    }


def _strangers() -> dict[str, tuple[bytes, str]]:
    """What libsndfile would read, or what a browser would play, and what is refused unread."""
    contents = {
        "AIFF": _saved("AIFF"),
        "AU": _saved("AU"),
        "CAF": _saved("CAF"),
        "MIDI": b"MThd\0\0\0\6\0\1\0\1\1\xe0" + bytes(20),
        "M4A": b"\0\0\0\x20ftypM4A " + bytes(40),
        "Matroska": b"\x1a\x45\xdf\xa3" + bytes(40),
        "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
        "AVI": b"RIFF\x10\0\0\0AVI " + bytes(40),
        "Musepack": b"MPCK" + bytes(40),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(40),
    }
    return {name: (data, "unsupported_format") for name, data in contents.items()}


def _oddities() -> dict[str, tuple[bytes, str]]:
    """Unusual, and good."""
    made = {
        "WAV of one sample": _saved("WAV", samples=np.array([0.5])),
        "WAV of 8 bits": _saved("WAV", subtype="PCM_U8"),
        "WAV of 24 bits": _saved("WAV", subtype="PCM_24"),
        "WAV of 64-bit floats": _saved("WAV", subtype="DOUBLE"),
        "WAV of floats far above full scale": _saved("WAV", samples=_NOISE * 1e6, subtype="FLOAT"),
        "WAV of µ-law": _saved("WAV", subtype="ULAW"),
        "WAV of ADPCM": _saved("WAV", subtype="IMA_ADPCM"),
        "WAV of six channels": _saved("WAV", samples=_NOISE[:3996].reshape(-1, 6)),
        "WAV of 1,000 channels": _saved("WAV", samples=_NOISE.reshape(-1, 1000)),
        "WAV written to a pipe": _wav(data_bytes=2**32 - 1),
        "WAV of an odd chunk": _wav(before=b"junk\3\0\0\0abc\0"),
        "RF64": _saved("RF64"),
        "FLAC with noise behind": _saved("FLAC") + bytes(100),
        "MP3 behind an ID3 tag": b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + _saved("MP3"),
        "Opus": _saved("OGG", subtype="OPUS", rate=48_000),
        "MP3 and HTML behind": _saved("MP3") + b"<script>alert(1)</script>",
        "384 kHz": _saved("WAV", rate=384_000),
        "1 kHz": _saved("WAV", rate=1000),
    }
    return {name: (data, OK) for name, data in made.items()}


def _saved(
    format: str,
    *,
    samples: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]" = _NOISE,
    rate: int = 16_000,
    subtype: str | None = None,
) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=format, subtype=subtype)
    return target.getvalue()


def _wav(
    *,
    rate: int = 8000,
    channels: int = 1,
    bits: int = 16,
    codec: int = 1,
    data_bytes: int | None = None,
    before: bytes = b"",
    swapped: bool = False,
) -> bytes:
    """A WAV file of 200 samples, with other fields in its header."""
    samples = (np.arange(200) % 50).astype("<i2").tobytes()
    block = min(channels * bits // 8, 65_535)
    form = struct.pack("<HHIIHH", codec, channels, rate, min(rate * block, 2**32 - 1), block, bits)
    header = b"fmt " + struct.pack("<I", len(form)) + form
    data = b"data" + struct.pack("<I", len(samples) if data_bytes is None else data_bytes) + samples
    body = b"WAVE" + (data + header if swapped else header + before + data)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _rf64(data_bytes: int) -> bytes:
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, data_bytes + 100, data_bytes, data_bytes // 2, 0)
    plain = _wav(data_bytes=2**32 - 1)
    return b"RF64\xff\xff\xff\xffWAVE" + ds64 + plain[12:]
