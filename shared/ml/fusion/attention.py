"""Attention between modalities: a small transformer whose tokens are the modalities of an item.

The multimodal transformer (Tsai et al., "Multimodal transformer for unaligned multimodal language sequences", ACL 2019)
lets each position of one modality attend over the positions of another. Here a modality is ONE vector: a softmax over a
single position is always 1, and its cross-modal attention would be a linear map that attends to nothing. With the
modalities themselves as tokens of one sequence, attention weighs them against each other, and that is what is built
here: a projection and a learned modality embedding for each token, a [CLS] token before them (Devlin et al., BERT,
NAACL 2019), layers with the norm first (Xiong et al., ICML 2020), and the [CLS] token as result. Its place in the
sequence is why [CLS] and not a mean: it is there even when nothing else is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.ml.fusion.base import Fusion, Masks, Vectors
from shared.queues import Modality


class AttentionFusion(Fusion):
    """To `dimension` values. Nobody attends to a missing modality; without any, [CLS] attends to itself alone."""

    def __init__(self, dimensions: Mapping[Modality, int], dimension: int, heads: int, layers: int, dropout: float):
        """`dimension` must be a multiple of `heads`."""
        super().__init__(dimensions)
        self.dimension = dimension
        self.projections = nn.ModuleDict({m: nn.Linear(d, dimension, bias=False) for m, d in self.dimensions.items()})
        # One more than there are modalities: [CLS] comes first.
        self.embeddings = nn.Parameter(torch.randn(1 + len(self.dimensions), dimension) * 0.02)
        self.layers = nn.ModuleList(_Layer(dimension, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, dimension]."""
        projected = [self.projections[m](v) for m, v in self.present(vectors, mask).items()]
        tokens = torch.stack([torch.zeros_like(projected[0]), *projected], dim=1) + self.embeddings
        attended = functional.pad(self.stacked(mask), (1, 0), value=True)
        for layer in self.layers:
            tokens = layer(tokens, attended)
        output: Tensor = self.norm(tokens[:, 0])
        return output


class _Layer(nn.Module):
    """Self-attention, then two linear layers, each with the norm before and the input added after."""

    def __init__(self, dimension: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dimension)
        self.attention_in = nn.Linear(dimension, 3 * dimension)
        self.attention_out = nn.Linear(dimension, dimension)
        self.linear_norm = nn.LayerNorm(dimension)
        self.linear = nn.Sequential(
            nn.Linear(dimension, 4 * dimension), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dimension, dimension)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """[n, tokens, dimension]; `attended`, bool [n, tokens], are the tokens that may be attended to."""
        tokens = tokens + self.dropout(self._attend(self.attention_norm(tokens), attended))
        change: Tensor = self.dropout(self.linear(self.linear_norm(tokens)))
        return tokens + change

    def _attend(self, tokens: Tensor, attended: Tensor) -> Tensor:
        together: Tensor = self.attention_in(tokens)
        queries, keys, values = (
            torch.unflatten(part, 2, (self.heads, -1)).transpose(1, 2) for part in together.chunk(3, dim=2)
        )
        mixed: Tensor = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=attended[:, None, None, :]
        )
        output: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(2))
        return output
