"""One file a method, and the one entry to them all."""

from services.finetune.data import Dataset
from services.finetune.modelling import Outside
from services.finetune.outcome import Outcome
from services.finetune.recipes.align import align
from services.finetune.recipes.classifier import class_problem
from services.finetune.recipes.prompt import Towers, prompt
from services.finetune.recipes.regressor import value_problem
from services.finetune.recipes.supervised import supervised
from shared.fine_tuning import FineTuneRequest, Method
from shared.language_tuning import PromptRequest
from shared.ml.device import choose_device
from shared.ml.repeatable import repeatable
from shared.worker.progress import Progress

__all__ = ["Outcome", "Towers", "fine_tune"]


def fine_tune(
    data: Dataset,
    request: FineTuneRequest | PromptRequest,
    progress: Progress,
    *,
    device: str = "auto",
    towers: Towers | None = None,
) -> Outcome:
    """A model of what the request asks for, trained on a feature set, and what it is worth. `towers` are for prompts.

    The same data, request and number of threads give the same model bit by bit, in whatever order the items come and
    however often the run was stopped. Raises JobError if nothing can be trained, and what `progress.check` raises.
    """
    outside = Outside(progress, choose_device(device))
    with repeatable(outside.device, sum(rows.size for rows in data.vectors.values())):
        if isinstance(request, PromptRequest):
            assert towers is not None
            return prompt(data, request, outside, towers)
        if request.method is Method.ALIGN:
            return align(data, request, outside)
        make_problem = class_problem if request.method is Method.CLASSIFIER else value_problem
        return supervised(data, request, outside, make_problem)
