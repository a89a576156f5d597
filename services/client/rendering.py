"""How things look on a terminal: tables and details. Results go to stdout, everything else to stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from shared.prompts import Prompt
from shared.schemas import File, ItemErrorEntry, Job, JobStatus, Key, StageProgress, WorkerEntry

_STYLES = {
    JobStatus.QUEUED: "dim",
    JobStatus.PLANNING: "cyan",
    JobStatus.RUNNING: "cyan",
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLING: "yellow",
    JobStatus.CANCELLED: "yellow",
}
_SHOWN_OF_REQUEST = (
    "input", "features", "model", "method", "preset", "encoders", "fusion", "training", "splitting", "search",
    "preprocessing",
)  # fmt: skip
#: Columns of a table whose reader is a program or a file, so that nothing is cut off.
_WIDE = 240


def output() -> Console:
    """Where results go."""
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def messages() -> Console:
    """Where progress, remarks and errors go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(*entries: BaseModel) -> None:
    """One JSON object a line, for scripts."""
    for entry in entries:
        sys.stdout.write(entry.model_dump_json() + "\n")


def print_entries(entries: Iterable[Any], table: Callable[[Sequence[Any]], Table], *, as_json: bool) -> None:
    """A list, as JSON lines or as the table that `table` makes of it."""
    if as_json:
        for entry in entries:
            print_json(entry)
    else:
        output().print(table(list(entries)))


def jobs_table(jobs: Sequence[Job]) -> Table:
    """One row a job."""
    table = table_of(
        "job", "type", "status", "items", "failed", "created", "took", "metadata", right=("items", "failed")
    )
    for job in jobs:
        table.add_row(
            job.id,
            job.type.value,
            status_text(job.status),
            f"{job.items.total:,}",
            f"{job.items.failed:,}" if job.items.failed else "",
            when(job.created_at),
            took(job),
            _pairs(job.metadata),
        )
    return table


def job_details(job: Job) -> Table:
    """Everything about one job."""
    table = details()
    table.add_row("job", job.id)
    table.add_row("status", status_text(job.status))
    if job.error is not None:
        table.add_row("error", f"{job.error.message} ({job.error.code})")
    table.add_row("items", item_counts(job))
    table.add_row("created", moment(job.created_at))
    table.add_row("took", took(job))
    if job.deadline_at is not None:
        table.add_row("deadline", moment(job.deadline_at))
    # Vectors that were there already were made as another job says.
    hidden = {"encoders", "preprocessing"} if job.request.get("features") else set()
    for name in _SHOWN_OF_REQUEST:
        if name not in hidden and job.request.get(name) is not None:
            table.add_row(name, _compact(job.request[name]))
    if job.models:
        table.add_row("models", ", ".join(job.models))
    if job.metadata:
        table.add_row("metadata", _pairs(job.metadata))
    if job.stages:
        table.add_row("stages", stages_table(job))
    return table


def stages_table(job: Job) -> Table:
    """One row a stage, with its rate."""
    table = table_of(
        "stage", "items", "cached", "shards", "failed", "took", "items/s",
        right=("items", "cached", "shards", "failed", "took", "items/s"),
    )  # fmt: skip
    for stage, progress in job.stages.items():
        pace = rate(progress)
        table.add_row(
            stage.value,
            f"{progress.items_done:,}/{progress.items_total:,}" if progress.items_total else "",
            f"{progress.items_cached:,}" if progress.items_cached else "",
            f"{progress.shards_done + progress.shards_failed:,}/{progress.shards_total:,}",
            f"{progress.shards_failed:,}" if progress.shards_failed else "",
            f"{seconds:.1f} s" if (seconds := elapsed(progress)) is not None else "",
            f"{pace:,.0f}" if pace is not None else "",
        )
    return table


def errors_table(errors: Sequence[ItemErrorEntry]) -> Table:
    """One row for each item, or modality of an item, that could not be used."""
    table = table_of("item", "modality", "code", "message", right=())
    for error in errors:
        table.add_row(error.item_id, error.modality or "(all)", error.code, error.message)
    return table


def workers_table(workers: Sequence[WorkerEntry]) -> Table:
    """One row a worker process."""
    table = table_of("pool", "state", "host", "pid", "up for", "heard from", "models", "works on", right=("pid",))
    for worker in workers:
        table.add_row(
            worker.pool,
            worker.state,
            worker.host,
            str(worker.pid),
            span(time.time() - worker.started_at),
            when(worker.last_seen_at),
            ", ".join(worker.loaded_models),
            ", ".join(_shard(shard) for shard in worker.current_shards),
        )
    return table


def files_table(files: Sequence[File]) -> Table:
    """One row a file."""
    table = table_of("file", "name", "size", "type", "created", right=("size",))
    for file in files:
        table.add_row(file.id, file.filename, decimal(file.bytes), file.content_type, when(file.created_at))
    return table


def keys_table(keys: Sequence[Key]) -> Table:
    """One row an API key."""
    table = table_of("key", "name", "tenant", "scope", "ends in", "created", "last used", "state", right=())
    for key in keys:
        state = f"revoked {when(key.revoked_at)}" if key.revoked_at else "active"
        used = when(key.last_used_at) if key.last_used_at else "never"
        table.add_row(key.id, key.name, key.tenant, key.scope, key.hint, when(key.created_at), used, state)
    return table


def prompts_table(prompts: Sequence[Prompt]) -> Table:
    """One row a version."""
    table = table_of("prompt", "name", "version", "language", "created", "template", right=("version",))
    for prompt in prompts:
        words = prompt.prompt.template.replace("\n", " ")
        table.add_row(
            prompt.id, prompt.name, str(prompt.version), prompt.prompt.language, when(prompt.created_at), words
        )  # fmt: skip
    return table


def prompt_details(prompt: Prompt) -> Table:
    """Everything about one prompt."""
    table = details()
    table.add_row("prompt", prompt.id)
    table.add_row("name", f"{prompt.name}, version {prompt.version}")
    table.add_row("created", moment(prompt.created_at))
    for name, value in prompt.prompt.model_dump(mode="json").items():
        if value:
            table.add_row(name, _compact(value))
    if prompt.metadata:
        table.add_row("metadata", _pairs(prompt.metadata))
    return table


def status_text(status: JobStatus) -> Text:
    """A status in its colour."""
    return Text(status.value, _STYLES[status])


def item_counts(job: Job) -> str:
    """`1,226 items: 969 succeeded, 257 partial, 0 failed`."""
    items = job.items
    return f"{items.total:,}: {items.succeeded:,} succeeded, {items.partial:,} partial, {items.failed:,} failed"


def elapsed(progress: StageProgress) -> float | None:
    """Seconds that a stage has run so far, or ran; None before its start."""
    if progress.started_at is None:
        return None
    return max(0.0, (progress.finished_at or time.time()) - progress.started_at)


def rate(progress: StageProgress) -> float | None:
    """Items per second of a stage since its start; None before anything was done."""
    seconds = elapsed(progress)
    return progress.items_done / seconds if seconds and progress.items_done else None


def took(job: Job) -> str:
    """How long a job has run, or ran, without its time in the queue."""
    if job.started_at is None:
        return ""
    return span((job.finished_at or time.time()) - job.started_at)


def when(timestamp: float) -> str:
    """`3 min ago`."""
    return f"{span(time.time() - timestamp)} ago"


def moment(timestamp: float) -> str:
    """`2026-11-23 21:02:15`, as clocks show it here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def span(seconds: float) -> str:
    """A length of time in its largest unit: `42 s`, `3 min`, `5 h`, `12 d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= 100):
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def details() -> Table:
    """An empty list of names and values, one a row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def table_of(*columns: str, right: Sequence[str]) -> Table:
    """An empty table; the columns named in `right` are of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _pairs(metadata: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in metadata.items())


def _compact(value: Any) -> str:
    """JSON on one line; what was left open is left out."""
    if isinstance(value, str):
        return value
    given = {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value
    return json.dumps(given, ensure_ascii=False)


def _shard(shard: dict[str, Any]) -> str:
    return f"{shard.get('job_id', '?')} {shard.get('stage', '')} {shard.get('index', '')}".strip()
