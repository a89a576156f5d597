"""Choosing among labels with a language model, without generating: by how likely their words are as its answer.

Verbalizers as in Schick and Schütze, "Exploiting cloze questions for few shot text classification" (EACL 2021);
contextual calibration: Zhao et al., "Calibrate before use" (ICML 2021).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from shared.ml.language.generate import Prompted
from shared.ml.language.likelihood import answer_log_likelihoods
from shared.ml.language.tuned import TunedLanguageModel
from shared.prompts import PromptTemplate

#: Inputs that say nothing (Zhao et al. 2021, section 5).
CONTENT_FREE = ("N/A", "[MASK]", "")


def label_probabilities(
    model: TunedLanguageModel,
    prompts: Sequence[Prompted],
    template: PromptTemplate,
    labels: Sequence[str],
    *,
    calibration: Sequence[float] = (),
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """How likely each label is, float64 [prompts, labels], rows of sum 1.

    A label is as likely as all its words together. With `calibration` (see `calibrate`) p becomes W·p with
    W = diag(calibration)⁻¹, scaled to sum 1: the order of labels is that of Zhao et al.'s softmax(W·p).
    """
    words = [template.words_for(label) for label in labels]
    answers = list(dict.fromkeys(word for several in words for word in several))
    place = {answer: number for number, answer in enumerate(answers)}
    said = answer_log_likelihoods(model, prompts, answers, check=check)
    by_label = [logsumexp(said[:, [place[word] for word in several]], axis=1) for several in words]
    likely: NDArray[np.float64] = softmax(np.stack(by_label, axis=1), axis=1)
    return likely if not len(calibration) else calibrated(likely, calibration)


def calibrate(
    model: TunedLanguageModel,
    template: PromptTemplate,
    labels: Sequence[str],
    *,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """What the model says of the labels without an item, float64 [labels]: the mean over inputs that say nothing."""
    empty = [Prompted(template.question(text, [])) for text in CONTENT_FREE if _says_something(template, text)]
    mean: NDArray[np.float64] = label_probabilities(model, empty, template, labels, check=check).mean(axis=0)
    scaled: NDArray[np.float64] = mean / mean.sum()
    return scaled


def calibrated(likely: NDArray[np.float64], calibration: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities [n, labels] divided by those without an item, and scaled to sum 1."""
    least = np.finfo(np.float64).tiny
    held = np.asarray(likely) / np.maximum(np.asarray(calibration, np.float64), least)
    scaled: NDArray[np.float64] = held / held.sum(axis=1, keepdims=True)
    return scaled


def _says_something(template: PromptTemplate, text: str) -> bool:
    """A template that is nothing but the item's text has no question without one."""
    return bool(template.question(text, [])[-1].parts)
