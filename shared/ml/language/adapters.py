"""What is trained of a language model through PEFT: LoRA, prompt tuning, P-tuning, prefix tuning.

Hu et al., "LoRA" (ICLR 2022); Lester et al., "The power of scale for parameter-efficient prompt tuning" (EMNLP 2021);
Liu et al., "GPT understands, too" (2021); Li and Liang, "Prefix-tuning" (ACL 2021).
"""

import importlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from shared.errors import JobError
from shared.language_tuning import Adapter, LanguageTraining

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_names = count()


class PeftAdapter:
    """One adapter on a base model that others may stand on, too: each has a name of its own there.

    Low-rank changes live inside the base model's layers, soft prompts beside it.
    """

    def __init__(self, model: Any, config: Any):
        """`config` is PEFT's. Parameters are drawn by torch's global generator."""
        from peft import PeftModelForCausalLM

        self._name = f"tuned{next(_names)}"
        vars(model).pop("peft_config", None)  # of another adapter: PEFT keeps those of one user only
        self._config = config
        with warnings.catch_warnings():  # PEFT asks transformers a question that it puts differently by now
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self._peft = PeftModelForCausalLM(model, config, adapter_name=self._name)
        self._peft.eval()
        self.is_prefix = config.peft_type == "PREFIX_TUNING"
        self.is_prompt = bool(config.is_prompt_learning) and not self.is_prefix
        self.virtual_tokens = int(config.num_virtual_tokens) if config.is_prompt_learning else 0

    @classmethod
    def new(cls, model: Any, training: LanguageTraining) -> "PeftAdapter":
        """An untrained one. Raises JobError (`unsuitable_adapter`) if the model cannot have it."""
        try:
            return cls(model, _config_of(training))
        except (ValueError, KeyError) as error:
            message = f"The adapter {training.adapter} does not suit this language model: {error}"
            raise JobError(message, code="unsuitable_adapter", param="training.adapter") from error

    @classmethod
    def load(cls, files: Mapping[str, bytes], model: Any) -> "PeftAdapter":
        """The one in these files, to be used as it is."""
        from peft import get_peft_config, set_peft_model_state_dict

        config = get_peft_config(json.loads(files[ADAPTER_CONFIG]))
        adapter = cls(model, config)
        set_peft_model_state_dict(adapter._peft, safetensors.torch.load(files[ADAPTER]), adapter_name=adapter._name)
        return adapter

    def files(self, base: str) -> dict[str, bytes]:
        """As PEFT saves it; `base` names the base model in it."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self._peft, adapter_name=self._name, save_embedding_layers=False)
        self._config.base_model_name_or_path = base
        was, self._config.inference_mode = self._config.inference_mode, True
        with tempfile.TemporaryDirectory() as folder:
            self._config.save_pretrained(folder)
            config = Path(folder, ADAPTER_CONFIG).read_bytes()
        self._config.inference_mode = was
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        return {ADAPTER: safetensors.torch.save(tensors, {"format": "pt"}), ADAPTER_CONFIG: config}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained of it, by name."""
        for name, parameter in self._peft.named_parameters():
            if f".{self._name}." in name:
                yield name.replace(f".{self._name}.", "."), parameter

    def prompt(self, batch: int) -> Tensor:
        """Of prompt and P-tuning: what is read before everything else, [batch, virtual_tokens, hidden]."""
        tokens: Tensor = self._peft.get_prompt(batch)
        return tokens

    def prefix(self, batch: int) -> Any:
        """Of prefix tuning: a cache in which the virtual tokens have been read."""
        return self._peft.get_prompt(batch)

    def switch_on(self) -> None:
        """Low-rank changes count from here on, those of this adapter alone."""
        switch_off(self._peft)
        if not self._config.is_prompt_learning:
            for layer in _tuner_layers(self._peft):
                layer.enable_adapters(enabled=True)
                layer.set_adapter([self._name])

    def close(self) -> None:
        """Takes it off the base model."""
        for layer in _tuner_layers(self._peft):
            layer.set_adapter([])
            layer.delete_adapter(self._name)


def switch_off(model: nn.Module) -> None:
    """The base model computes as if it had no adapters."""
    for layer in _tuner_layers(model):
        layer.enable_adapters(enabled=False)


def _tuner_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _config_of(training: LanguageTraining) -> Any:
    peft: Any = importlib.import_module("peft")
    task, virtual = "CAUSAL_LM", training.virtual_tokens
    if training.adapter is Adapter.LORA:
        return peft.LoraConfig(
            task_type=task, r=training.lora_rank, lora_alpha=training.lora_alpha or 2 * training.lora_rank,
            lora_dropout=training.lora_dropout, target_modules=training.lora_targets or "all-linear",
        )  # fmt: skip
    if training.adapter is Adapter.PROMPT:
        # From words of the vocabulary: what is drawn at random lies far from anything the model has ever read.
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=virtual, prompt_tuning_init="SAMPLE_VOCAB")
    if training.adapter is Adapter.P_TUNING:
        return peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=virtual)
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=virtual)
