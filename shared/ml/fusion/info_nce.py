"""The contrastive loss that trains `align`: the vectors of one item find each other among those of a batch.

InfoNCE (van den Oord et al., "Representation learning with contrastive predictive coding", 2018) in both directions,
with the learned temperature of CLIP (Radford et al., ICML 2021), over every pair of modalities.
"""

import math
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.ml.fusion.base import Masks, Vectors

#: Similarities are multiplied by exp(logit_scale): at first by 1/0.07, never by more than 100, as in CLIP.
INITIAL_LOGIT_SCALE, MAX_LOGIT_SCALE = math.log(1 / 0.07), math.log(100)


class InfoNCE(nn.Module):
    """Symmetric InfoNCE of the projections of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def forward(self, projections: Vectors, mask: Masks) -> Tensor:
        """Unit vectors [n, d] and bool [n] of two modalities or more to one number.

        It is the mean over all pairs of modalities, both directions, and the items that have both; the other items of
        the batch that have both are the negatives. An item with fewer than two modalities does not count; if all are
        such, the loss is 0.
        """
        with torch.no_grad():  # the parameter itself, since a clamp in the graph would never let it come back
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        losses, count = [], 0
        for a, b in combinations(projections, 2):
            both = mask[a] & mask[b]
            logits = _similarities(projections[a][both], projections[b][both]) * self.logit_scale.exp()
            target = torch.arange(len(logits), device=logits.device)
            losses += [functional.cross_entropy(x, target, reduction="sum") for x in (logits, logits.T)]
            count += 2 * len(logits)
        return torch.stack(losses).sum() / max(count, 1)


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    """[n, n], in float32 at least: bfloat16 cannot tell similarities apart that a scale of 100 pulls apart."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return a.to(wide) @ b.to(wide).T
