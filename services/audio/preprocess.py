"""Untrusted bytes to mono PCM, or to features. Runs in decode processes: soundfile, soxr and librosa; no torch."""

import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from shared.errors import ItemError
from shared.ml.encoders.log_mel import log_mel
from shared.ml.encoders.mfcc_stats import extract

#: The formats that are read, by how their files begin (an MP3 also begins with any of its frames). Everything else is
#: refused unread.
_SIGNATURES = re.compile(rb"(RIFF|RF64).{4}WAVE|fLaC|OggS|ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]", re.DOTALL)
_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
_SAMPLE_RATES = range(1_000, 384_001)
_DEFAULT_MAX_SECONDS = 600.0

_BLOCK_SAMPLES = 1 << 18
#: The length in an MP3's header may be off by two frames of the codec.
_LENGTH_TOLERANCE = 2 * 1152
#: From here on a length in a header means "unknown" (the file was written to a pipe).
_UNKNOWN_BYTES = 0x7FFF0000
_UNKNOWN_FRAMES = 1 << 62

_TRIM_WINDOW, _TRIM_HOP = 2048, 512

Samples = NDArray[np.float32]

_EXTRACTORS: dict[str, Callable[[Samples], Samples]] = {"mfcc_stats": extract, "log_mel": log_mel}


def decode(data: bytes, options: dict[str, Any]) -> Samples:
    """Bytes of a WAV, FLAC, OGG (Vorbis, Opus) or MP3 file to mono PCM, float32 [samples], full scale ±1.

    Channels are averaged. Options: `sample_rate` (Hz; else the file's own), resampled with soxr's HQ recipe;
    `max_seconds` (limit, by the header and while reading); `first_seconds` (use no more than that); `trim_silence` (cut
    what is more than `trim_db` below the loudest, at both ends); `normalize` (to a peak of 1); `extractor`
    (`mfcc_stats`: the result is that extractor's vector; `log_mel`: a spectrogram).

    Raises ItemError: `empty_media`, `unsupported_format`, `media_too_large` or `corrupt_media`.
    """
    if not data:
        raise ItemError("The audio has no bytes.", code="empty_media")
    if not _SIGNATURES.match(data):
        raise ItemError("Not a WAV, FLAC, OGG or MP3 file.", code="unsupported_format")
    samples = _read(data, options)
    if not len(samples):
        raise ItemError("The audio has no samples.", code="empty_media")
    if not np.all(np.isfinite(samples)):
        raise ItemError("The audio has samples that are not numbers.", code="corrupt_media")
    if options.get("trim_silence"):
        samples = _trim(samples, float(options.get("trim_db", 60.0)))
    if options.get("normalize") and (peak := np.abs(samples).max()) > 0:
        samples = samples / peak
    extractor = _EXTRACTORS.get(str(options.get("extractor")))
    return samples if extractor is None else extractor(samples)


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no type hints
    """Reads straight on. SoundFile seeks after each read, from which an MP3 decoder does not come back unchanged."""

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """Bytes in which seeking before the start ends at the start, so that libsndfile's callback does not raise."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(max(offset, 0) if whence == 0 else offset, whence)


def _read(data: bytes, options: dict[str, Any]) -> Samples:
    """Decode, mix down and resample block by block: no more than a block is ever held at the file's own rate."""
    if _is_cut_short(data):
        raise ItemError("The audio is cut short.", code="corrupt_media")
    try:
        with _Stream(_Bytes(data)) as file:
            wanted, limit = _frames_to_read(file, options)
            rate = int(options.get("sample_rate") or file.samplerate)
            return _resample(_blocks(file, wanted, limit), file.samplerate, rate)
    except soundfile.LibsndfileError as error:
        raise ItemError(f"The audio cannot be decoded: {error}", code="corrupt_media") from error


def _is_cut_short(data: bytes) -> bool:
    """Whether a WAV file promises more data than it has; libsndfile would go on without a word."""
    if not data.startswith(b"RIFF"):
        return False
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8 + size
        if name == b"data":
            return bool(size < _UNKNOWN_BYTES and position > len(data))
        position += size % 2
    return True


def _frames_to_read(file: soundfile.SoundFile, options: dict[str, Any]) -> tuple[float, int]:
    """How many frames are wanted (infinity: until the end, where the header does not say), and how many are allowed."""
    if file.format not in _FORMATS:
        raise ItemError(f"{file.format} audio is not read.", code="unsupported_format")
    if file.samplerate not in _SAMPLE_RATES:
        raise ItemError(f"A sample rate of {file.samplerate} Hz is not read.", code="unsupported_format")
    limit = math.ceil(float(options.get("max_seconds", _DEFAULT_MAX_SECONDS)) * file.samplerate)
    wanted = file.frames if file.frames < _UNKNOWN_FRAMES else math.inf
    if (first_seconds := options.get("first_seconds")) is not None:
        wanted = min(wanted, math.ceil(float(first_seconds) * file.samplerate))
    if limit < wanted < math.inf:
        raise _too_long(file, limit)
    return wanted, limit


def _blocks(file: soundfile.SoundFile, wanted: float, limit: int) -> Iterator[Samples]:
    frames = 0
    while frames < wanted:
        size = max(_BLOCK_SAMPLES // file.channels, 1)
        block = file.read(int(min(size, wanted - frames)), dtype="float32", always_2d=True)
        frames += len(block)
        if frames > limit:
            raise _too_long(file, limit)
        if not len(block):
            break
        yield block.mean(axis=1) if file.channels > 1 else block[:, 0]
    if frames < wanted - _LENGTH_TOLERANCE and wanted < math.inf:
        raise ItemError(f"The audio ends after {frames} of {wanted} frames.", code="corrupt_media")


def _too_long(file: soundfile.SoundFile, limit: int) -> ItemError:
    return ItemError(f"The audio is longer than {limit / file.samplerate:g} s.", code="media_too_large")


def _resample(blocks: Iterator[Samples], source: int, target: int) -> Samples:
    if source == target:
        return np.concatenate([np.zeros(0, np.float32), *blocks])
    stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
    parts, frames = [], 0
    for block in blocks:
        frames += len(block)
        parts.append(stream.resample_chunk(block))
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate(parts)
    length = math.ceil(frames * target / source)
    return np.pad(samples[:length], (0, max(length - len(samples), 0)))


def _trim(samples: Samples, decibels: float) -> Samples:
    """Without the quiet ends: frames of 2048 samples around every 512th, by their power relative to the loudest."""
    padded = np.pad(samples.astype(np.float64), _TRIM_WINDOW // 2)
    energy = np.concatenate([[0.0], np.cumsum(padded**2)])
    power = np.maximum(energy[_TRIM_WINDOW:] - energy[:-_TRIM_WINDOW], 0.0)[::_TRIM_HOP]
    loud = np.flatnonzero(power > power.max() * 10 ** (-decibels / 10))
    if not len(loud):
        return samples
    return samples[loud[0] * _TRIM_HOP : (loud[-1] + 1) * _TRIM_HOP]
