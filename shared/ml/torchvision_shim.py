"""Makes torchvision importable beside a CPU build of torch.

PyPI's torchvision 0.28 is a CUDA build whose compiled operators do not load beside CPU torch, and its import then stops
at "operator torchvision::nms does not exist". Declaring the two operators that it describes at import is enough: box
suppression stays unusable, and nothing here uses it. transformers' models import torchvision as well.
"""

import importlib
import importlib.util
import threading

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_lock = threading.Lock()


def make_torchvision_importable() -> None:
    """Import torchvision, declaring its missing operators if its own library cannot be loaded; call it before importing
    torchvision or transformers' models. Without torchvision installed, and from the second call on, it does nothing.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    with _lock:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            _declare_operators()
            importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _SIGNATURE)
