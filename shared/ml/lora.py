"""LoRA (Hu et al. 2022): low-rank changes to a model's linear layers, trained in place of the weights themselves."""

from torch import nn

_DROPOUT = 0.05


class Adapter:
    """Changes to all linear layers of a transformers model; until they are merged, its own weights stay as they are."""

    def __init__(self, model: nn.Module, rank: int):
        from peft import LoraConfig, LoraModel

        # Scaled by 2, as is usual; what is trained starts as no change at all.
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=_DROPOUT, target_modules="all-linear")
        self._layers = LoraModel(model, config, "default")

    def merge(self) -> None:
        """Adds the changes to the weights: the model is a plain one again."""
        self._layers.merge_and_unload()
