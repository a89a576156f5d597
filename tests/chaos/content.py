"""What the items of the chaos jobs hold: texts, pictures and sounds drawn from a generator."""

import base64
import io

import numpy as np
import soundfile
from PIL import Image

_WORDS = [
    "red",
    "blue",
    "green",
    "bus",
    "car",
    "bicycle",
    "night",
    "morning",
    "rain",
    "tree",
    "house",
    "river",
    "stone",
]


def sentence(random: np.random.Generator, words: int = 12) -> str:
    """A text that comes once."""
    return " ".join(random.choice(_WORDS, words)) + f" {random.integers(1_000_000)}"


def picture(random: np.random.Generator, size: int) -> bytes:
    """A PNG of noise, `size` pixels wide and high."""
    target = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (size, size, 3), np.uint8)).save(target, "PNG")
    return target.getvalue()


def sound(random: np.random.Generator, samples: int) -> bytes:
    """A WAV file of noise."""
    target = io.BytesIO()
    soundfile.write(target, random.uniform(-0.5, 0.5, samples).astype(np.float32), 16_000, format="WAV")
    return target.getvalue()


def data_uri(kind: str, data: bytes) -> str:
    """Media as they stand in a request; `kind` is image/png or the like."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()
