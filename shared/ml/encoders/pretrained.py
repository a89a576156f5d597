"""Reads Hugging Face models as every encoder needs them: safetensors only, no code from the model, ready to infer."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml.encoders.base import WEIGHTS
from shared.ml.onednn import use_onednn
from shared.ml.torchvision_shim import make_torchvision_importable


def model_folder(spec: EncoderSpec, source: Path | None) -> Path:
    """`source`, once it is known to be a folder with safetensors weights. Raises JobError (`encoder_invalid`)."""
    if source is None or not source.is_dir():
        raise invalid(spec, f"{spec.source!r} is not a model folder")
    if not any(source.glob("*.safetensors")):
        raise invalid(
            spec,
            f"{source} has no safetensors weights, and other formats can run code as they are read; "
            "convert it with save_pretrained",
        )
    return source


def load_model(
    spec: EncoderSpec,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    unused: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    trainable: bool = False,
) -> Any:
    """transformers' AutoModel from `folder`, in evaluation mode, on `device` in `dtype`; ready to infer, or to train.

    Weights that the checkpoint lacks would be random, so they are an error unless their name starts with one of
    `unused`. Its parts whose name starts with one of `without` are dropped. Raises JobError (`encoder_invalid`).
    """
    make_torchvision_importable()
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    quiet: Any = logging  # its functions have no types
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise invalid(spec, f"transformers cannot read {folder}: {error}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:
        raise invalid(spec, f"the checkpoint lacks weights of its own architecture, {missing[0]} for one")
    for name in [name for name, _ in model.named_children() if name.startswith(without)]:
        delattr(model, name)
    model.eval().requires_grad_(trainable).to(device)
    if not trainable:
        use_onednn(model)
    return model


def save_model(model: Any, source: Path, folder: Path) -> None:
    """Writes a model that was read from `source` and then trained: one file of weights, and what was beside them."""
    for path in model_files(source):
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    model.save_pretrained(folder, max_shard_size="1TB")


def save_weights(module: torch.nn.Module, folder: Path) -> None:
    """Writes a module's state."""
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, folder / WEIGHTS)


def load_tokenizer(spec: EncoderSpec, folder: Path) -> Any:
    """transformers' AutoTokenizer from `folder`. Raises JobError (`encoder_invalid`) unless it is a fast one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise invalid(spec, f"transformers cannot read the tokenizer of {folder}: {error}") from error
    if not tokenizer.is_fast:
        raise invalid(spec, "its tokenizer has no fast form (tokenizer.json)")
    return tokenizer


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that determine its vectors: weights, configuration, tokenizer."""
    return [path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".txt", ".model"}]


def invalid(spec: EncoderSpec, cause: str) -> JobError:
    """The error for a model that does not fit its catalogue entry."""
    return JobError(f"The encoder {spec.id} cannot be used: {cause}.", code="encoder_invalid")
