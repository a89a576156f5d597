"""fp32 matrix products through oneDNN.

torch multiplies fp32 matrices on the CPU with MKL, which on AMD processors runs at half the speed of oneDNN (measured:
0.18 against 0.42 TFLOP/s on two Zen 4 cores); bf16 goes through oneDNN anyway. Both compute in IEEE fp32.
"""

import torch
from torch import nn


class OneDnnLinear(nn.Linear):
    """nn.Linear for inference on the CPU in fp32; without gradients."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """float32 [..., in_features] to float32 [..., out_features]."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return output


def use_onednn(model: nn.Module) -> None:
    """Let every plain nn.Linear in `model` that is in fp32 on the CPU compute through oneDNN, if this torch has it."""
    if not torch._C._has_mkldnn:
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype is torch.float32:
            module.__class__ = OneDnnLinear
