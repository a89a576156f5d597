"""Which token comes next."""

import torch
from torch import Tensor


class Sampler:
    """Draws the tokens of one answer: by temperature and nucleus (Holtzman et al., ICLR 2020), with its own seed."""

    def __init__(self, temperature: float, top_p: float, seed: int):
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, logits: Tensor) -> int:
        """From float32 [vocabulary]."""
        if self._temperature == 0:
            return int(logits.argmax())
        probabilities = (logits / self._temperature).softmax(0).cpu()
        if self._top_p < 1:
            probabilities = nucleus(probabilities, self._top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeros but for the fewest likeliest that are together at least as likely as `top_p`; the sum is no longer 1."""
    ordered, order = probabilities.sort(descending=True, stable=True)
    kept = ordered.cumsum(0) - ordered < top_p
    return torch.zeros_like(probabilities).scatter(0, order[kept], ordered[kept])
