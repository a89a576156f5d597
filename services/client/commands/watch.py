"""`trivium watch`, and the watching that `submit --watch` does."""

import typer

from services.client.commands.options import AsJson, Connection, JobId, connection
from services.client.rendering import messages, print_json
from services.client.retries import Retries
from services.client.watching import summary, watch
from shared.schemas import Job, JobStatus

#: The exit status that shells give to what Ctrl-C ended.
_INTERRUPTED = 130
#: Watching outlives a restart of the gateway: it is given up after about two minutes.
_PATIENT = Retries(limit=20)


def watch_job(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended.

    Ctrl-C leaves the job running. The exit status is 0 if the job succeeded, 1 if it failed or was cancelled, and 130
    after Ctrl-C.

    Example:

    ```
    trivium watch job-01k9w0c3v8e6m5j2k1x7r4t9qz
    ```
    """
    ended = watch_to_the_end(connection(context), job)
    if as_json:
        print_json(ended)
    exit_unless_succeeded(ended)


def watch_to_the_end(here: Connection, job_id: str) -> Job:
    """Shows progress on stderr until the job has ended. Ctrl-C exits and leaves the job running."""
    console = messages()
    try:
        with here.client(_PATIENT) as client:
            job = watch(client, job_id, console)
    except KeyboardInterrupt:
        console.print(
            f"Stopped watching; {job_id} goes on. [bold]trivium watch {job_id}[/] shows it again, "
            f"[bold]trivium cancel {job_id}[/] ends it."
        )
        raise typer.Exit(_INTERRUPTED) from None
    summary(job, console)
    return job


def exit_unless_succeeded(job: Job) -> None:
    """Exits with status 1 when a job that has ended did not succeed."""
    if job.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)
