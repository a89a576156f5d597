"""From a catalogue entry to an encoder: finds the weights, checks that they are safe to read, picks the class."""

import hashlib
import importlib
import io
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml import sources
from shared.ml.encoders.base import Encoder, TrainableEncoder
from shared.queues import Modality

if TYPE_CHECKING:
    from shared.ml.device import Precision

AnyEncoder = TypeVar("AnyEncoder", bound=Encoder)

#: Loader (and modality, where one loader has a class for each) to "module:class". Every class is built as
#: `Class(spec, source, device, precision)`; the source is a file or folder, or None if the spec names neither.
_CLASSES: dict[tuple[str, Modality], str] = {
    ("transformers", Modality.TEXT): "shared.ml.encoders.transformers_text:TransformersTextEncoder",
    ("transformers", Modality.IMAGE): "shared.ml.encoders.transformers_image:TransformersImageEncoder",
    ("transformers", Modality.AUDIO): "shared.ml.encoders.transformers_audio:TransformersAudioEncoder",
    ("vision_tokens", Modality.IMAGE): "shared.ml.encoders.vision_tokens:VisionTokensEncoder",
    ("torchvision", Modality.IMAGE): "shared.ml.encoders.torchvision:TorchvisionEncoder",
    ("mfcc_stats", Modality.AUDIO): "shared.ml.encoders.mfcc_stats:MfccStatsEncoder",
    ("speaker", Modality.AUDIO): "shared.ml.encoders.speaker:SpeakerEncoder",
    ("log_mel_cnn", Modality.AUDIO): "shared.ml.encoders.log_mel_cnn:LogMelCnnEncoder",
    ("word2vec", Modality.TEXT): "shared.ml.encoders.word2vec:Word2VecEncoder",
    **{("hashing", modality): "shared.ml.encoders.hashing:HashingEncoder" for modality in Modality},
}

#: sha256 of the weights in pickle format that ship inside packages and may be read.
_PACKAGED_WEIGHTS = {
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889": "mobilenet_v2-b0353104.pth",
    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e": "resemblyzer/pretrained.pt",
}


def load_encoder(
    spec: EncoderSpec, *, device: str = "auto", precision: "Precision" = "auto", model_path: Path | None = None
) -> Encoder:
    """Build the encoder that `spec` describes; `model_path` is a registry model's folder and replaces `spec.source`.

    Raises JobError: `encoder_unavailable` if the weights cannot be had, `encoder_invalid` if they do not fit the entry.
    """
    encoder: Encoder = _class_of(spec)(spec, model_path or resolve_source(spec), device, precision)
    return _checked(encoder)


def load_trainable(spec: EncoderSpec, *, device: str = "auto", model_path: Path | None = None) -> TrainableEncoder:
    """As `load_encoder`, but in fp32 and with gradients, for encoders whose loader is in `catalog.TRAINING`.

    What its files lack is drawn by torch's global generator: call `torch.manual_seed` before. A registry model's
    folder must stay until the encoder is saved.
    """
    source = model_path or resolve_source(spec)
    encoder: TrainableEncoder = _class_of(spec)(spec, source, device, "fp32", trainable=True)
    return _checked(encoder)


def _class_of(spec: EncoderSpec) -> Any:
    name = _CLASSES.get((spec.loader, spec.modality))
    if name is None:
        raise JobError(f"{spec.id}: the loader {spec.loader} has no {spec.modality} encoder.", code="encoder_invalid")
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _checked(encoder: AnyEncoder) -> AnyEncoder:
    spec = encoder.spec
    if encoder.dimension != spec.dimension:
        raise JobError(
            f"{spec.id}: the model's vectors have {encoder.dimension} numbers, the catalogue says {spec.dimension}.",
            code="encoder_invalid",
        )
    return encoder


def resolve_source(spec: EncoderSpec) -> Path | None:
    """Where the entry's weights are on this machine; a hub model is fetched (with HF_HUB_OFFLINE set, from its cache).

    `package:NAME/PATH` is found without importing the package; a local path starts with `/`, `~` or `.`; for the
    loaders `transformers` and `vision_tokens` anything else is a hub id. None if the source is a name that the loader
    itself knows.
    """
    try:
        if spec.source.startswith("package:"):
            return sources.in_package(spec.source)
        if sources.is_local(spec.source):
            return sources.in_folder(spec.source)
        is_hub = spec.loader in ("transformers", "vision_tokens")
        return sources.from_hub(spec.source, spec.revision) if is_hub else None
    except sources.SourceMissingError as error:
        raise JobError(f"The encoder {spec.id} cannot be loaded: {error}.", code="encoder_unavailable") from error


def load_packaged_weights(path: Path) -> Any:
    """What a `.pth`/`.pt` file from an installed package holds, tensors on the CPU.

    Only files whose sha256 is listed are read, and with `weights_only=True`. Raises JobError (`encoder_invalid`).
    """
    import torch

    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _PACKAGED_WEIGHTS:
        raise JobError(
            f"{path.name} (sha256 {digest}) is not on the list of packaged weights; use safetensors.",
            code="encoder_invalid",
        )
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def digest_of(paths: Iterable[Path]) -> str:
    """sha256 (hex) over the names and contents of files; contents are read once as long as size and mtime stay."""
    total = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        total.update(f"{path.name}\0{_file_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return total.hexdigest()


def fingerprint_of(weights: str, dtype: str, preprocessing: Mapping[str, Any]) -> str:
    """An encoder's fingerprint: sha256 (hex) over the digest of its weights, its dtype and its preprocessing (JSON)."""
    facts = json.dumps([weights, dtype, preprocessing], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(facts.encode()).hexdigest()


@lru_cache(maxsize=1024)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
