"""Weighted concatenation: each vector is scaled to length w_m before they are joined.

The dot product of two fused vectors is then Σ w_m² · cosine of modality m: the weights say how much each modality
counts, whatever the scale of its encoder. The weighted combination of Kittler et al., "On combining classifiers" (PAMI
1998), applied to features instead of decisions.
"""

from collections.abc import Mapping

import numpy as np

from shared.ml.fusion.concat import Mask, Vectors, concat
from shared.queues import Modality


def weighted(
    vectors: Mapping[Modality, Vectors], mask: Mapping[Modality, Mask], weights: Mapping[Modality, float]
) -> Vectors:
    """float32 [n, d_m] and bool [n] per modality to float32 [n, Σ d_m]; a modality without a weight counts 1.

    A vector of zeros stays zero. Rows whose mask is False are zero.
    """
    scaled = {m: _scale(rows) * np.float32(weights.get(m, 1.0)) for m, rows in vectors.items()}
    return concat(scaled, mask)


def _scale(rows: Vectors) -> Vectors:
    """Rows divided by their Euclidean length, computed in float64 so that large values do not overflow."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
