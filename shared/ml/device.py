"""Where a model runs and in which precision. Settings are not read here: the caller passes what it was told."""

from typing import Literal

import torch

#: "auto" is bf16 on devices that compute it faster than fp32, else fp32.
Precision = Literal["auto", "fp32", "bf16"]


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1"); "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """The dtype a model computes in on `device`. fp32 means IEEE fp32: on CUDA, TF32 is switched off for it."""
    if precision == "bf16" or (precision == "auto" and has_fast_bf16(device)):
        return torch.bfloat16
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch.float32


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware: CUDA from capability 8.0, CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    processor = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))


def configure_threads(torch_threads: int) -> None:
    """Let torch use `torch_threads` cores inside an operator, one operator at a time. Call it before any model."""
    torch.set_num_threads(torch_threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)
