"""Decoding of audio: equal to soundfile and librosa, every format, rate and depth, and every kind of bad input."""

import io
import random
import struct
import subprocess
import sys
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from services.audio.preprocess import decode
from shared.errors import ItemError

FORMATS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def sound(frames: int, rate: int, channels: int = 1) -> NDArray[np.float32]:
    """A rising tone with noise; each channel louder than the one before."""
    time = np.arange(frames) / rate
    tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * time) * time) + np.random.default_rng(frames).normal(0, 0.01, frames)
    stereo = np.stack([tone * (channel + 1) / channels for channel in range(channels)], axis=1)
    return stereo.astype(np.float32)


def encoded(samples: NDArray[Any], rate: int, format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def code_of(data: bytes, **options: Any) -> str:
    with pytest.raises(ItemError) as caught:
        decode(data, options)
    return caught.value.error_code


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_equals_soundfile_and_librosa(format: str, subtype: str, channels: int, rate: int) -> None:
    data = encoded(sound(rate, rate, channels), rate, format, subtype)
    reference, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    expected = librosa.resample(librosa.to_mono(reference.T), orig_sr=rate, target_sr=16000)
    decoded = decode(data, {"sample_rate": 16000})
    assert decoded.dtype == np.float32
    assert decoded.shape == expected.shape == (16000,)
    np.testing.assert_allclose(decoded, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 22050, 32000, 44100, 96000])
@pytest.mark.parametrize("target", [16000, 22050, 48000])
def test_other_rates_equal_librosa(rate: int, target: int) -> None:
    samples = sound(7001, rate)
    expected = librosa.resample(samples[:, 0], orig_sr=rate, target_sr=target)
    decoded = decode(encoded(samples, rate, "WAV", "FLOAT"), {"sample_rate": target})
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded, expected, atol=1e-6)


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", None)])
def test_long_files_are_read_in_blocks_without_seams(format: str, subtype: str | None) -> None:
    rate = 22050
    data = encoded(sound(rate * 20, rate, 2), rate, format, subtype)
    reference, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    expected = librosa.resample(librosa.to_mono(reference.T), orig_sr=rate, target_sr=16000)
    np.testing.assert_allclose(decode(data, {"sample_rate": 16000}), expected, atol=1e-6)


def test_without_a_sample_rate_the_files_own_stays() -> None:
    assert decode(encoded(sound(11025, 11025), 11025, "WAV"), {}).shape == (11025,)


@pytest.mark.parametrize("frames", [1, 2, 3, 50])
def test_very_short_clips(frames: int) -> None:
    decoded = decode(encoded(sound(frames, 48000), 48000, "WAV"), {"sample_rate": 16000})
    assert decoded.shape == (-(-frames // 3),)
    assert np.isfinite(decoded).all()


def test_silence_is_legal() -> None:
    data = encoded(np.zeros(800), 8000, "WAV")
    for options in ({}, {"normalize": True}, {"trim_silence": True}, {"sample_rate": 16000}):
        assert not decode(data, options).any()
    assert decode(data, {"trim_silence": True, "normalize": True}).shape == (800,)


def test_normalize_scales_the_peak_to_one() -> None:
    decoded = decode(encoded(sound(4000, 8000) / 3, 8000, "WAV", "FLOAT"), {"normalize": True})
    assert np.abs(decoded).max() == pytest.approx(1)


@pytest.mark.parametrize("decibels", [20.0, 40.0, 60.0])
def test_trimming_equals_librosa(decibels: float) -> None:
    samples = np.concatenate([np.zeros(5000), sound(9000, 16000)[:, 0], 1e-3 * sound(3000, 16000)[:, 0], np.zeros(777)])
    data = encoded(samples, 16000, "WAV", "FLOAT")
    expected, _ = librosa.effects.trim(samples.astype(np.float32), top_db=decibels)
    decoded = decode(data, {"trim_silence": True, "trim_db": decibels})
    np.testing.assert_array_equal(decoded, expected)
    assert decode(data, {}).shape == samples.shape


def test_first_seconds() -> None:
    samples = sound(48000, 16000)
    for format in ("WAV", "FLAC", "MP3", "OGG"):
        data = encoded(samples, 16000, format)
        whole, beginning = decode(data, {}), decode(data, {"first_seconds": 0.5})
        np.testing.assert_array_equal(beginning, whole[:8000])
        assert decode(data, {"first_seconds": 99.0}).shape == (48000,)
        assert decode(data, {"first_seconds": 0.5, "max_seconds": 1.0}).shape == (8000,)
        assert code_of(data, first_seconds=2.0, max_seconds=1.0) == "media_too_large"


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_the_limit_of_seconds(format: str) -> None:
    data = encoded(sound(32000, 16000), 16000, format)
    assert decode(data, {"max_seconds": 2.0}).shape == (32000,)
    assert code_of(data, max_seconds=1.999) == "media_too_large"


def flac_of_unknown_length(samples: NDArray[Any], rate: int) -> bytes:
    data = bytearray(encoded(samples, rate, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def test_a_length_that_the_header_does_not_tell_is_limited_while_reading() -> None:
    data = flac_of_unknown_length(sound(400_000, 16000), 16000)
    assert decode(data, {}).shape == (400_000,)
    assert decode(data, {"first_seconds": 3.0}).shape == (48_000,)
    assert code_of(data, max_seconds=24.9) == "media_too_large"


def test_a_file_written_to_a_pipe() -> None:
    data = bytearray(encoded(sound(8000, 16000), 16000, "WAV"))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert decode(bytes(data), {}).shape == (8000,)


def test_an_mp3_with_tags() -> None:
    data = encoded(sound(16000, 16000), 16000, "MP3")
    tagged = b"ID3\x03\0\0\0\0\x02\0" + bytes(256) + data + b"TAG" + bytes(125)
    np.testing.assert_array_equal(decode(tagged, {}), decode(data, {}))


@pytest.mark.parametrize(("format", "subtype"), [(f, s) for f, s in FORMATS if f not in {"OGG", "RF64"}])
def test_truncated_files(format: str, subtype: str) -> None:
    data = encoded(sound(48000, 16000, 2), 16000, format, subtype)
    for length in (24, 50, len(data) // 2, len(data) * 9 // 10):
        assert code_of(data[:length]) in {"corrupt_media", "empty_media"}


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_truncated_ogg_gives_what_is_there(subtype: str) -> None:
    """Its length is not in its head, and streams that were cut off are common."""
    data = encoded(sound(160_000, 16000), 16000, "OGG", subtype)
    assert 0 < len(decode(data[: len(data) * 9 // 10], {})) < 160_000
    assert code_of(data[:50]) == "corrupt_media"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_samples_that_are_not_numbers(value: float, rate: int) -> None:
    samples = sound(4000, 16000)[:, 0]
    samples[2000] = value
    assert code_of(encoded(samples, 16000, "WAV", "FLOAT"), sample_rate=rate) == "corrupt_media"


def test_nothing() -> None:
    assert code_of(b"") == "empty_media"
    assert code_of(encoded(np.zeros((0, 1)), 16000, "WAV")) == "empty_media"


def test_other_formats() -> None:
    others = [encoded(sound(800, 8000), 8000, format) for format in ("AIFF", "AU", "CAF", "W64", "VOC", "NIST")]
    others += [b"text", b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3", b"RIFF\4\0\0\0AVI ", b"MThd", b"#!AMR\n", b"\xff\xf1P"]
    for data in others:
        assert code_of(data) == "unsupported_format"


@pytest.mark.parametrize("rate", [100, 700_000])
def test_absurd_sample_rates(rate: int) -> None:
    assert code_of(encoded(sound(800, 8000), rate, "WAV")) == "unsupported_format"


def test_absurd_headers() -> None:
    data = bytearray(encoded(sound(800, 8000), 8000, "WAV"))
    for offset, value in ((22, 0), (22, 65535), (24, 0), (34, 0), (34, 4096), (16, 0xFFFFFFFF)):
        broken = bytearray(data)
        struct.pack_into("<I" if offset in {16, 24} else "<H", broken, offset, value)
        assert code_of(bytes(broken)) in {"corrupt_media", "unsupported_format"}


@pytest.mark.parametrize("head", [b"RIFF\x24\0\0\0WAVE", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"])
def test_nonsense_after_a_known_beginning(head: bytes) -> None:
    noise = random.Random(0).randbytes(3000)
    assert code_of(head + noise) == "corrupt_media"
    assert code_of(head) == "corrupt_media"


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)]
)
def test_damaged_files_give_sound_or_a_known_error(format: str, subtype: str | None) -> None:
    data = encoded(sound(8000, 16000), 16000, format, subtype)
    chance = random.Random(format)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        known = {"decoded", "corrupt_media", "unsupported_format", "media_too_large", "empty_media"}
        assert outcome(bytes(damaged)) in known


def outcome(data: bytes) -> str:
    """`decoded`, or the code of the error; anything but an ItemError passes through."""
    try:
        decoded = decode(data, {"sample_rate": 16000, "max_seconds": 10.0})
    except ItemError as error:
        return error.error_code
    return "decoded" if decoded.dtype == np.float32 and np.isfinite(decoded).all() else "malformed"


def test_decoding_imports_no_torch_and_all_of_librosa_at_once() -> None:
    heavy = "{'torch', 'transformers', 'numba'}"
    modules = "services.audio.preprocess, shared.ml.encoders.mfcc_stats"
    command = f"import sys, {modules}; sys.exit(str({heavy} & set(sys.modules) or ''))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "{'numba'}"
