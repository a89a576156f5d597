"""A job's progress on the terminal: a bar for each stage, with its rate and the time left."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from services.client.client import Client
from services.client.rendering import item_counts, rate, span, status_text, took
from shared.items import Split
from shared.queues import Stage
from shared.schemas import Job, JobEvent, StageProgress

#: All items are trained on at once: there is nothing to count until the end, and no pace.
_TRAINING = frozenset({Stage.FIT, Stage.FINE_TUNE})
#: What events of training say in the bar of their stage, until the next one.
_TRAINING_NOTES: dict[str, Callable[[dict[str, Any]], str]] = {
    "training.epoch": lambda e: (
        f"{e.get('model') or e['encoder']}: epoch {e['epoch']}, validation loss {_loss(e['validation_loss'])}"
    ),
    "training.trial": lambda e: f"trial {e['number'] + 1} ({e['candidate']}): validation loss {_loss(e['loss'])}",
    "training.batch": lambda e: (
        f"{e['model']}: epoch {e['epoch']}, step {e['step']} of {e['steps']}, loss {_loss(e['loss'])}, "
        f"{e['tokens_per_second']:.0f} tokens/s"
    ),
    "training.step": lambda e: str(e["doing"]),
}
#: And above it, to stay.
_TRAINING_REMARKS: dict[str, Callable[[dict[str, Any]], Text]] = {
    "training.warning": lambda e: Text(e["message"], "yellow"),
    "training.dry_run": lambda e: Text(
        f"{e['part']}: {e['tokens']:,} tokens, the longest item {e['tokens_of_one']['longest']:,}; "
        f"{e['cut']['examples']} cut, {e['left_out']['examples']} left out"
    ),
    "training.split": lambda e: Text(", ".join(f"{part} {e[part]:,}" for part in Split if part in e) + " items"),
    "training.model": lambda e: Text(
        f"{e['model']}: validation loss {_loss(e['loss'])} in epoch {e['epoch']} ({e['seconds']:.1f} s)"
    ),
    "training.fold": lambda e: Text(f"fold {e['fold']}: score {e['score']:.3f}"),
}


class _Progress(BaseModel):
    """What an event of the type `progress` says, as far as it is shown."""

    stages: dict[Stage, StageProgress]


class JobProgress:
    """The bars of one job, as a context manager; on something that is no terminal, a line as each stage ends."""

    def __init__(self, console: Console):
        self._console = console
        self._bars: dict[Stage, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[items]:>15}"),
            TextColumn("{task.fields[rate]:>13}"),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._told: set[Stage] = set()
        self._training: dict[Stage, str] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, stages: Mapping[Stage, StageProgress]) -> None:
        """Draws the counters of a job's stages."""
        for stage in sorted(stages, key=list(Stage).index):
            self._show_stage(stage, stages[stage])

    def tell(self, event: JobEvent) -> None:
        """Says above the bars what goes wrong, and what is done about it; and how training goes."""
        if event.type in _TRAINING_NOTES:
            stage, note = Stage(event.data.get("stage", Stage.FINE_TUNE)), _TRAINING_NOTES[event.type](event.data)
            self._training[stage] = note
            if stage in self._bars:
                self._progress.update(self._bars[stage], note=note)
        elif event.type in _TRAINING_REMARKS:
            self._progress.console.print("•", _TRAINING_REMARKS[event.type](event.data))
        else:
            self._remark(event)

    def _remark(self, event: JobEvent) -> None:
        place = f"{event.data.get('stage')} shard {event.data.get('shard')}"
        text = {
            "shard.retried": f"{place} is tried again ({event.data.get('code')})",
            "shard.rescued": f"{place} was taken back from a worker that died",
            "shard.failed": f"{place} failed ({event.data.get('code')})",
        }.get(event.type)
        if text is not None:
            self._progress.console.print(Text.assemble(("• ", "yellow"), text))

    def _show_stage(self, stage: Stage, progress: StageProgress) -> None:
        ended = progress.finished_at is not None
        training = stage in _TRAINING
        pace = None if training else rate(progress)
        counted = progress.items_total > 0 and (ended or not training)
        fields: dict[str, Any] = {
            "items": f"{progress.items_done:,}/{progress.items_total:,}" if counted else "",
            "rate": f"{pace:,.0f} items/s" if pace else "",
            "note": self._training.get(stage, "") if training and not ended else _note(progress, pace),
        }
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage.value, total=None, **fields)
        total: float | None = progress.items_total if counted else float(ended) or None
        done = progress.items_done if counted else float(ended)
        self._progress.update(self._bars[stage], total=total, completed=total if ended and total else done, **fields)
        if ended and stage not in self._told:
            self._told.add(stage)
            if not self._console.is_terminal:
                self._console.print(" ".join(filter(None, [stage.value, *fields.values()])))


def watch(client: Client, job_id: str, console: Console) -> Job:
    """Shows a job's progress until it has ended, and returns it. Outlives restarts of the gateway."""
    with JobProgress(console) as progress:
        for event in client.jobs.events(job_id):
            if event.type == "progress":
                progress.show(_Progress.model_validate(event.data).stages)
            else:
                progress.tell(event)
        job = client.jobs.wait(job_id)
        progress.show(job.stages)
    return job


def summary(job: Job, console: Console) -> None:
    """Says how a job ended and what can be done next."""
    console.print(status_text(job.status), f"in {took(job) or '0 s'}; items {item_counts(job)}")
    if job.error is not None:
        console.print(Text.assemble((job.error.message, "red"), f" ({job.error.code})"))
    if job.items.partial or job.items.failed:
        console.print(f"What could not be used: [bold]trivium errors {job.id}[/]")


def _note(progress: StageProgress, pace: float | None) -> str:
    notes = []
    if progress.finished_at is None and pace:
        notes.append(f"{span((progress.items_total - progress.items_done) / pace)} left")
    if progress.items_cached:
        notes.append(f"{progress.items_cached:,} from the cache")
    if progress.shards_failed:
        notes.append(f"{progress.shards_failed:,} shards failed")
    return ", ".join(notes)


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
