"""Canonical correlation analysis: the projections of `align` in closed form, without training.

Hotelling, "Relations between two sets of variates" (Biometrika 1936), for two modalities; for more, the MAXVAR form of
Kettenring, "Canonical analysis of several sets of variables" (Biometrika 1971): the largest eigenvectors of the
correlations between all whitened modalities, which for two are the classical ones. Regularised as the canonical ridge
of Vinod (J. Econometrics 1976). Each pair of modalities is correlated over the items that have both.
"""

import torch
from torch import Tensor

from shared.errors import JobError
from shared.ml.fusion.align import AlignFusion
from shared.ml.fusion.base import Masks, Vectors, zero_missing
from shared.queues import Modality

#: Directions with less of the largest variance are constant, and correlations below it are none: rounding made them.
_TOLERANCE = 1e-10


def fit_cca(vectors: Vectors, mask: Masks, dimension: int, regularisation: float) -> AlignFusion:
    """Projections to the `dimension` most correlated directions, strongest first, in the dtype of the vectors.

    Float [n, d_m] and bool [n] of two modalities or more; only items that have at least two count. Computed in float64.
    `regularisation` is added to the variances, in units of a modality's mean variance: 0 is plain CCA, which overfits
    unless items far outnumber dimensions. Equal data give equal projections: signs are fixed. Raises JobError
    (`no_common_space`) if the items do not correlate in so many directions, ValueError for a single modality.
    """
    modalities = [m for m in Modality if m in vectors]
    if len(modalities) < 2:
        raise ValueError("CCA needs at least two modalities")
    counted = torch.stack([mask[m] for m in modalities]).sum(0) >= 2
    present = {m: mask[m] & counted for m in modalities}
    means = {m: vectors[m][present[m]].double().sum(0) / _count(present[m]) for m in modalities}
    centred = {m: zero_missing(vectors[m].double() - means[m], present[m]) for m in modalities}
    whitening = {m: _whitening(rows.T @ rows / _count(present[m]), regularisation) for m, rows in centred.items()}
    whitened = {m: rows @ whitening[m] for m, rows in centred.items()}
    directions = _strongest(_correlations(whitened, present), dimension)
    fusion = AlignFusion({m: vectors[m].shape[1] for m in modalities}, dimension).to(vectors[modalities[0]])
    blocks = torch.split(directions, [w.shape[1] for w in whitening.values()])
    for m, block in zip(modalities, blocks, strict=True):
        weight = (whitening[m] @ block).T
        fusion.projections[m].load_state_dict({"weight": weight, "bias": -weight @ means[m]})
    return fusion


def _whitening(covariance: Tensor, regularisation: float) -> Tensor:
    """The matrix [d, rank] after which the modality's directions have variance 1 and do not correlate."""
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > _TOLERANCE * variances[-1]
    whitening: Tensor = directions[:, kept] / (variances[kept] + regularisation * variances.mean()).sqrt()
    return whitening


def _correlations(whitened: Vectors, present: Masks) -> Tensor:
    """Of all directions with those of other modalities, over the items that have both: [Σ rank, Σ rank].

    0 within a modality, where nothing correlates any more.
    """
    rows = torch.cat(list(whitened.values()), dim=1)
    has = torch.stack([present[m] for m in whitened], dim=1).double()
    modality = torch.arange(len(whitened), device=rows.device).repeat_interleave(
        torch.tensor([w.shape[1] for w in whitened.values()], device=rows.device)
    )
    counts = (has.T @ has).clamp(min=1)[modality][:, modality]
    return (rows.T @ rows / counts).masked_fill(modality[:, None] == modality, 0.0)


def _strongest(correlations: Tensor, dimension: int) -> Tensor:
    """The eigenvectors [Σ rank, dimension] of the largest eigenvalues; the largest component of each is positive."""
    values, vectors = torch.linalg.eigh(correlations)
    available = int((values > _TOLERANCE).sum())
    if dimension > available:
        message = (
            f"The modalities correlate in {available} directions, fewer than the dimension of the common space, "
            f"{dimension}: lower it, or give more items that have two modalities."
        )
        raise JobError(message, code="no_common_space")
    strongest: Tensor = vectors[:, -dimension:].flip(1)
    largest = strongest.gather(0, strongest.abs().argmax(0, keepdim=True))
    return strongest * largest.sign()


def _count(present: Tensor) -> int:
    """How many; 1 for none, for what is divided by it is then 0."""
    return max(int(present.sum()), 1)
