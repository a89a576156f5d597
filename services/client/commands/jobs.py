"""`trivium jobs`, `show`, `cancel`, `retry` and `delete`."""

from itertools import islice
from typing import Annotated

import typer

from services.client.commands.options import AsJson, JobId, Metadata, connection, pairs
from services.client.rendering import job_details, jobs_table, messages, output, print_entries, print_json, status_text
from shared.schemas import Job, JobStatus, JobType


def jobs(
    context: typer.Context,
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    type: Annotated[JobType | None, typer.Option(help="Only jobs of this type.")] = None,
    metadata: Metadata = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    all: Annotated[bool, typer.Option("--all", help="As many as there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Examples:

    ```
    trivium jobs
    trivium jobs --status running --status queued
    trivium jobs --metadata project=emoji --all --json | jq -r .id
    ```
    """
    filters = pairs(metadata, "--metadata")
    page = 100 if all else min(limit, 100)
    with connection(context).client() as client:
        found = client.jobs.list(status=status, type=type, metadata=filters, limit=page)
        print_entries(found if all else islice(found, limit), jobs_table, as_json=as_json)


def show(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Show everything about a job: its state, stages, rates and request.

    Example:

    ```
    trivium show job-01k9w0c3v8e6m5j2k1x7r4t9qz
    ```
    """
    with connection(context).client() as client:
        found = client.jobs.get(job)
    if as_json:
        print_json(found)
    else:
        output().print(job_details(found))


def cancel(context: typer.Context, job: JobId) -> None:
    """Cancel a job: what waits is dropped, what runs stops at its next batch."""
    with connection(context).client() as client:
        _say(client.jobs.cancel(job))


def retry(context: typer.Context, job: JobId) -> None:
    """Try the failed items of an ended job again; what succeeded stays."""
    with connection(context).client() as client:
        _say(client.jobs.retry(job))


def delete(context: typer.Context, job: JobId) -> None:
    """Delete an ended job with its results. This cannot be undone."""
    with connection(context).client() as client:
        client.jobs.delete(job)
    messages().print(f"{job} is deleted.")


def _say(job: Job) -> None:
    messages().print(job.id, "is", status_text(job.status))
