"""How likely given answers are: for choosing among labels without generating."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.ml.language.generate import Prompted
from shared.ml.language.loading import LanguageModel
from shared.ml.language.tuned import TunedLanguageModel


def answer_log_likelihoods(
    model: TunedLanguageModel | LanguageModel,
    prompts: Sequence[Prompted],
    answers: Sequence[str],
    *,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """log p(answer | prompt), float64 [prompts, answers]: the sum over the answer's tokens, its end not included.

    The prompt is read once for all answers. `check` is called before each batch and may raise to stop.
    """
    raise NotImplementedError
