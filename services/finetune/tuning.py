"""A language model is tuned on this worker: in this process, or in several, for which this one looks after them (see
shared.ml.distributed). Each of them loads the model and goes through the whole recipe; the first evaluates and writes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.finetune.language.data import Conversations
from services.finetune.modelling import Outside
from services.finetune.outcome import Outcome
from services.finetune.recipes.instruction import tune_language_model
from shared.language_models import LanguageModelSpec
from shared.language_tuning import InstructionRequest, PromptRequest
from shared.ml.device import choose_device
from shared.ml.distributed import answers_of, processes_for, run_ranks
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.prepared_items import ItemFile, write_items
from shared.ml.process_group import Alone, ProcessGroup
from shared.ml.rank import Rank
from shared.settings import WorkerSettings
from shared.worker.progress import Progress

#: A share of a step below this many conversations keeps no GPU busy.
_FEWEST_CONVERSATIONS = 2

_TUNING, _SETTINGS, _OUTCOME = 0, 1, "outcome"


@dataclass(frozen=True)
class Tuning:
    """What is to be done. `spec` is the base model, `start` the files of a tuned one whose training goes on;
    `encoders`, ids by modality, made the vectors in the data."""

    data: Conversations
    request: InstructionRequest | PromptRequest
    spec: LanguageModelSpec
    start: dict[str, bytes] | None
    encoders: dict[str, str]

    def run(self, worker: WorkerSettings, progress: Progress, group: ProcessGroup) -> Outcome | None:
        """See tune_language_model."""
        progress.report("step", doing=f"loading {self.spec.id}")
        base = load_base(self.spec, self.request, worker, group.rank if group.world_size > 1 else None)
        outside = Outside(progress, base.device, group)
        return tune_language_model(
            self.data, self.request, base, outside, start=self.start, encoders=self.encoders
        )  # fmt: skip


def tune(tuning: Tuning, worker: WorkerSettings, progress: Progress) -> Outcome:
    """A tuned model: the same for the same data, request, device and numbers of threads and processes.

    Raises what `progress.check` raises, TrainingProcessError, and JobError if the model cannot be loaded or tuned.
    """
    device, training = choose_device(worker.device), tuning.request.training
    processes = processes_for(
        worker, device, training.batch_size * training.gradient_accumulation, len(tuning.data.items),
        fewest=_FEWEST_CONVERSATIONS,
    )  # fmt: skip
    if processes > 1:
        return _tune_together(tuning, worker, processes, progress, cpu=device.type == "cpu")
    outcome = tuning.run(worker, progress, Alone())
    assert outcome is not None  # the only process is the first
    return outcome


def load_base(
    spec: LanguageModelSpec, request: InstructionRequest | PromptRequest, worker: WorkerSettings, gpu: int | None = None
) -> LanguageModel:
    """The base model as a request wants it; `gpu`: if there are any, on this one. Raises JobError."""
    training, device = request.training, choose_device(worker.device)
    precision = worker.precision if training.precision == "auto" else training.precision
    name = f"cuda:{gpu}" if device.type == "cuda" and gpu is not None else worker.device
    return load_language_model(spec, device=name, precision=precision, quantization=training.quantization)


def tune_rank(here: Rank) -> None:
    """One of several processes: the first leaves the outcome in their folder."""
    given = ItemFile(here.folder / "given")
    tuning, worker = given.read(_TUNING), given.read(_SETTINGS)
    outcome = tuning.run(worker, here.progress, here.group)
    if outcome is not None:
        write_items(here.folder / _OUTCOME, {0: outcome})


def _tune_together(tuning: Tuning, worker: WorkerSettings, processes: int, progress: Progress, *, cpu: bool) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_items(folder / "given", {_TUNING: tuning, _SETTINGS: worker})
        answers = answers_of(progress, folder)
        run_ranks(f"{__name__}:tune_rank", folder, processes, cpu=cpu, answers=answers, check=progress.check)
        outcome: Outcome = ItemFile(folder / _OUTCOME).read(0)
        return outcome
