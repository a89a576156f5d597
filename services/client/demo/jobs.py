"""Jobs that must not fail."""

from rich.console import Console

from services.client.client import Client
from services.client.errors import ClientError
from services.client.watching import summary, watch
from shared.schemas import Job, JobStatus


def succeeded(client: Client, job: Job, console: Console) -> Job:
    """Shows a job's progress to its end. Raises ClientError (`demo_failed`) if it did not succeed."""
    job = watch(client, job.id, console)
    summary(job, console)
    if job.status is not JobStatus.SUCCEEDED:
        raise ClientError(f"The job {job.id} is {job.status.value}; see the logs.", code="demo_failed")
    return job
