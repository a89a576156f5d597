"""Concatenation: an item's vectors one after the other, zeros where a modality is missing.

The early fusion of Ngiam et al., "Multimodal Deep Learning" (ICML 2011), without a network behind it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.queues import Modality

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]


def concat(vectors: Mapping[Modality, Vectors], mask: Mapping[Modality, Mask]) -> Vectors:
    """float32 [n, d_m] and bool [n] per modality to float32 [n, Σ d_m], modalities in the order of the mapping.

    Rows whose mask is False are zero, whatever their vectors hold: a missing modality never leaks.
    """
    return np.concatenate([np.where(mask[m][:, None], vectors[m], np.float32(0)) for m in vectors], axis=1)
