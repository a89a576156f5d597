"""torchvision's classification models as image encoders: the features that their last layer would classify."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.border import BORDER, Border
from shared.ml.encoders.image_batches import in_batches
from shared.ml.encoders.loading import digest_of, fingerprint_of, load_packaged_weights
from shared.ml.encoders.pretrained import invalid, save_weights
from shared.ml.onednn import use_onednn
from shared.ml.torchvision_shim import make_torchvision_importable

#: uint8 [height, width, 3]
RGB = NDArray[np.uint8]

#: What torchvision's builders set whenever they are given pretrained weights.
_BUILDER_OPTIONS: dict[str, dict[str, Any]] = {
    arch: {"transform_input": True, "aux_logits": False, "init_weights": False}
    for arch in ("googlenet", "inception_v3")
}
_TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.")


class TorchvisionOptions(BaseModel):
    """The catalogue options of a torchvision encoder.

    `arch` is torchvision's name of the model (else `source` is), `weights` the name of one of its pretrained weights,
    whose preprocessing is used, and which are loaded unless `source` says where weights are. `border`: a learned one is
    put around what the model sees.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str = ""
    weights: str = "DEFAULT"
    border: bool = False


class TorchvisionEncoder:
    """Image to the input of the model's last layer, pooled over the image (see TorchvisionOptions)."""

    def __init__(
        self, spec: EncoderSpec, source: Path | None, device: str, precision: Precision, *, trainable: bool = False
    ):
        self.spec = spec
        options = _options_of(spec)
        arch = options.arch or spec.source
        weights = _weights_of(spec, arch, options.weights)
        recipe = weights.transforms()
        self.decode_options: dict[str, Any] = {
            "resize": recipe.resize_size[0],
            "interpolation": recipe.interpolation.value,
            "crop": recipe.crop_size[0],
        }
        self._device = choose_device(device)
        self.at_once = 32 * 224 * 224
        dtype = choose_dtype(self._device, precision)
        state, path = _load_weights(spec, source, weights)
        model = _build(spec, arch, recipe.crop_size[0], state)
        model = settle_batch_norms(model) if trainable else fold_batch_norms(model.requires_grad_(False))
        if dtype is torch.bfloat16:
            to_bf16(model)
        self.module: nn.Module = model.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # wrong hint
        if not trainable:
            use_onednn(self.module)
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.picture_size = (recipe.crop_size[0], recipe.crop_size[0])
        self.border = Border.load(spec, source)
        if self.border is not None:
            self.border.to(self._device)
        self.dimension = self._probe(recipe.crop_size[0])
        preprocessing = self.decode_options | {"arch": arch, "mean": recipe.mean, "std": recipe.std}
        files = [path] if self.border is None else [path, path.with_name(BORDER)]
        self.fingerprint = fingerprint_of(digest_of(files), str(dtype), preprocessing)

    def preprocess(self, media: Media) -> RGB:
        """The image as decoding left it, uint8 [crop, crop, 3]: what is left to do is faster in batches."""
        return np.asarray(media, np.uint8)

    def cost(self, prepared: RGB) -> int:
        """Pixels."""
        return int(prepared.shape[0] * prepared.shape[1])

    def encode(self, batch: Sequence[RGB]) -> Vectors:
        """Images of one size to float32 [len(batch), dimension]."""
        with torch.inference_mode():
            array: Vectors = self.vectors(batch).cpu().numpy()
        return array

    def vectors(self, batch: Sequence[RGB]) -> torch.Tensor:
        """See TrainableEncoder."""
        return torch.cat([self._forward(part) for part in in_batches(batch, self.cost(batch[0]), self._device)])

    def save(self, folder: Path) -> None:
        """See TrainableEncoder."""
        save_weights(self.module, folder)
        if self.border is not None:
            self.border.save(folder)

    def _forward(self, images: Sequence[RGB]) -> torch.Tensor:
        # Seen as [n, 3, h, w], rows of RGB pixels are what torch calls channels-last.
        pixels = torch.from_numpy(np.stack(images)).to(self._device).permute(0, 3, 1, 2)
        normalized = torch.addcmul(self._shift, pixels.float(), self._scale)
        if self.border is not None:
            normalized = self.border(normalized)
        features: torch.Tensor = self.module(normalized)
        return features.float()

    def _probe(self, crop: int) -> int:
        """The dimension of the vectors, from one black image: what cannot run fails here."""
        try:
            _, dimension = self.encode([np.zeros((crop, crop, 3), np.uint8)]).shape
            return int(dimension)
        except (IndexError, RuntimeError, AttributeError, TypeError) as error:
            raise invalid(self.spec, f"the model cannot encode an image: {error}") from error


def _options_of(spec: EncoderSpec) -> TorchvisionOptions:
    try:
        return TorchvisionOptions.model_validate(spec.options)
    except ValidationError as error:
        raise invalid(spec, f"its options are wrong: {error}") from error


def _weights_of(spec: EncoderSpec, arch: str, name: str) -> Any:
    """torchvision's entry for the weights: their URL and preprocessing."""
    make_torchvision_importable()
    from torchvision import models

    if arch not in models.list_models(module=models):
        raise invalid(spec, f"torchvision has no classification model {arch!r}")
    known = models.get_model_weights(arch)
    if name not in known.__members__:
        raise invalid(spec, f"torchvision's weights for {arch} are {', '.join(known.__members__)}")
    return known[name]


def _load_weights(spec: EncoderSpec, source: Path | None, weights: Any) -> tuple[dict[str, torch.Tensor], Path]:
    """The state dict and the file it is in: a listed `.pth`, a safetensors file, or torchvision's download."""
    if source is None:
        return _download(spec, weights)
    if source.suffix in {".pth", ".pt"}:
        return load_packaged_weights(source), source
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(f for f in source.glob("*.safetensors") if f.name != BORDER) if source.is_dir() else [source]
    if len(files) != 1:
        raise invalid(spec, f"{source} has {len(files)} safetensors files, and one is needed")
    try:
        return load_file(files[0]), files[0]
    except (OSError, SafetensorError) as error:
        raise invalid(spec, f"{files[0]} is not a safetensors file: {error}") from error


def _download(spec: EncoderSpec, weights: Any) -> tuple[dict[str, torch.Tensor], Path]:
    """torchvision's weights from torch's cache; fetched if need be, and checked against the hash in their name."""
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError) as error:
        message = (
            f"The encoder {spec.id} cannot be loaded: {weights.url} is neither cached nor can it be fetched ({error}). "
            "Allow this worker to reach it, fill torch's cache (TORCH_HOME) beforehand, or give a local path "
            "in the encoders file."
        )
        raise JobError(message, code="encoder_unavailable") from error
    return state, Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)


def _build(spec: EncoderSpec, arch: str, image_size: int, state: dict[str, torch.Tensor]) -> nn.Module:
    """The model without its last layer, holding `state`, in evaluation mode."""
    from torchvision import models

    options = {"image_size": image_size} if arch.startswith("vit_") else _BUILDER_OPTIONS.get(arch, {})
    model: nn.Module = models.get_model(arch, weights=None, **options)
    dropped = (f"{_remove_last_layer(model)}.", *_TRAINING_ONLY)
    kept = OrderedDict((name, tensor) for name, tensor in state.items() if not name.startswith(dropped))
    # The versions of the layers' layouts, which safetensors do not keep and MNASNet asks for.
    kept._metadata = getattr(state, "_metadata", None) or model.state_dict()._metadata  # type: ignore[attr-defined]  # torch's
    try:
        model.load_state_dict(kept)
    except (RuntimeError, ValueError) as error:
        raise invalid(spec, f"the weights are not those of {arch}: {error}") from error
    return model.eval()


class _SettledBatchNorm2d(nn.BatchNorm2d):
    """Normalises by the statistics that it has, in training too: those of a few images at a time would be noise."""

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        return super().train(False)


def settle_batch_norms(model: nn.Module) -> nn.Module:
    """Let every batch normalisation keep the statistics of its pretraining; its scale and shift can be trained."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SettledBatchNorm2d
    return model


def _remove_last_layer(model: nn.Module) -> str:
    """Puts an identity in the place of the last layer, which gives one score a class; returns its name."""
    name: str = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    model.set_submodule(name, nn.Identity())
    return name


class _Fp32Conv2d(nn.Conv2d):
    """Computes in fp32, and answers in bf16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.float()).bfloat16()


def to_bf16(model: nn.Module) -> None:
    """Turn all weights but those of the first two convolutions to bf16; the model still takes fp32.

    Of what rounding spoils, half is spoilt there: MobileNetV2's vectors of photographs then have a cosine of 0.9995 to
    those in fp32, else of 0.9987.
    """
    names = [name for name, module in model.named_modules() if type(module) is nn.Conv2d][:2]
    exact = {name: copy.deepcopy(model.get_submodule(name)) for name in names}
    model.bfloat16()
    for name, convolution in exact.items():
        convolution.__class__ = _Fp32Conv2d
        model.set_submodule(name, convolution)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Multiply each batch normalisation that follows a convolution into its weights: a third faster, the same results.

    Returns `model` itself if it has none to fold. It must be in evaluation mode and free of control flow on values.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    traced = torch.fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
