"""One file a method, and the one entry to them all."""

from services.finetune.data import Dataset
from services.finetune.language.data import Conversations
from services.finetune.modelling import Outside
from services.finetune.outcome import Outcome
from services.finetune.prompting.pretrained import Pretrained
from services.finetune.recipes.align import align
from services.finetune.recipes.classifier import class_problem
from services.finetune.recipes.prompt import prompt
from services.finetune.recipes.regressor import value_problem
from services.finetune.recipes.supervised import supervised
from shared.fine_tuning import FineTuneRequest, Method
from shared.language_tuning import PromptRequest
from shared.ml.device import choose_device
from shared.ml.repeatable import repeatable
from shared.worker.progress import Progress

__all__ = ["Outcome", "fine_tune"]


def fine_tune(
    data: Dataset | Conversations,
    request: FineTuneRequest | PromptRequest,
    progress: Progress,
    *,
    device: str = "auto",
    models: Pretrained | None = None,
) -> Outcome:
    """A model of what the request asks for, trained on a feature set, and what it is worth. `models` are for prompts.

    The same data, request and number of threads give the same model bit by bit, in whatever order the items come and
    however often the run was stopped. Raises JobError if nothing can be trained, and what `progress.check` raises.
    """
    outside = Outside(progress, choose_device(device))
    if isinstance(request, PromptRequest):
        assert models is not None
        with repeatable(outside.device):
            return prompt(data, request, outside, models)
    assert isinstance(data, Dataset)
    with repeatable(outside.device, sum(rows.size for rows in data.vectors.values())):
        if request.method is Method.ALIGN:
            return align(data, request, outside)
        make_problem = class_problem if request.method is Method.CLASSIFIER else value_problem
        return supervised(data, request, outside, make_problem)
