"""Devices, precisions, threads, and the ways around what libraries lack on some machines."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from shared.ml.device import choose_device, choose_dtype, has_fast_bf16
from shared.ml.onednn import use_onednn

CPU = torch.device("cpu")


def run(program: str) -> str:
    """What a fresh interpreter prints, warnings being errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asked_for_devices_and_precisions_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_dtype(CPU, "fp32") is torch.float32
    assert choose_dtype(CPU, "bf16") is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype(CPU) is dtype


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_has_bf16_from_ampere_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bf16(torch.device("cuda")) is fast


def test_threads_are_set() -> None:
    program = (
        "import torch\n"
        "from shared.ml.device import configure_threads\n"
        "configure_threads(3)\n"
        "configure_threads(2)\n"
        "print(torch.get_num_threads(), torch.get_num_interop_threads())"
    )
    assert run(program).split() == ["2", "1"]


def test_torchvision_can_be_imported_after_the_shim() -> None:
    program = (
        "from shared.ml.torchvision_shim import make_torchvision_importable\n"
        "make_torchvision_importable()\n"
        "make_torchvision_importable()\n"
        "import torch, torchvision\n"
        "model = torchvision.models.mobilenet_v2().eval()\n"
        "from transformers import AutoModel, BertModel\n"
        "print(tuple(model(torch.zeros(1, 3, 64, 64)).shape))"
    )
    assert run(program).strip() == "(1, 1000)"


def test_without_torchvision_the_shim_does_nothing() -> None:
    program = (
        "import importlib.util, sys\n"
        "importlib.util.find_spec = lambda name: None\n"
        "from shared.ml.torchvision_shim import make_torchvision_importable\n"
        "make_torchvision_importable()\n"
        "print('torch' in sys.modules)"
    )
    assert run(program).strip() == "False"


@pytest.mark.parametrize("shape", [(1, 5), (64, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_computes_what_torch_does(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 7, bias=bias), nn.GELU()), torch.randn(shape)
    with torch.inference_mode():
        expected = model(x)
        use_onednn(model)
        torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model(x.mT.contiguous().mT), expected, atol=1e-6, rtol=1e-5)
    assert type(model[0]) is not nn.Linear


def test_onednn_leaves_other_precisions_and_modules_alone() -> None:
    class Special(nn.Linear): ...

    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), Special(2, 2), nn.Conv1d(1, 1, 1))
    use_onednn(model)
    assert [type(module) for module in model] == [nn.Linear, Special, nn.Conv1d]
