"""The output and error files of batches whose jobs have ended."""

from datetime import datetime

from sqlalchemy import select

from services.dispatcher.batches.endpoints import endpoint_of
from services.dispatcher.batches.files import BatchFiles
from services.dispatcher.batches.lines import open_requests
from services.dispatcher.batches.results import Results
from services.dispatcher.steps.context import SweepContext
from shared.batches import BatchOf
from shared.ids import new_id
from shared.jobs import batches
from shared.jobs.batches import Summary
from shared.jobs.files import locate_files
from shared.jobs.models import Batch, Job
from shared.observability import get_logger
from shared.storage import keys
from shared.worker.control import is_away

log = get_logger(__name__)

#: Batches finished in one sweep.
MOST = 100


def finish(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # whatever has ended is due
    """Writes and registers the files of batches: objects first, then the rows that name them, in one transaction.

    Two at once: both write the same, and the row's lock lets one of them name its objects; the other's are deleted, or
    found by the sweep. The files take longer to write than a transaction may last.
    """
    with context.sessions() as session:
        ids = batches.unfinalized(session, limit=MOST)
    finished = 0
    for id in ids:
        try:
            _finish(context, id)
            finished += 1
        except Exception as error:
            if is_away(error):
                raise
            log.exception("the files of a batch cannot be written", batch=id)  # the others do not wait for it
    return finished


def _finish(context: SweepContext, id: str) -> None:
    with context.sessions() as session:
        batch, job = session.execute(select(Batch, Job).join(Job, Job.id == Batch.job_id).where(Batch.id == id)).one()
        input_file = locate_files(session, batch.tenant, [batch.input_file_id]).get(batch.input_file_id)
    if input_file is None or "requests" not in job.schema.get("batch", {}):  # not planned, or in vain
        with context.sessions.begin() as session:
            batches.finalize(session, id, Summary(), None, None)
        return
    endpoint, asked = endpoint_of(job.request), BatchOf.model_validate(job.request["batch"])
    requests = open_requests(context.store, context.settings.limits, input_file.key or "", asked)
    objects = [keys.blob(batch.tenant, new_id("upload")) for _ in ("output", "errors")]
    with BatchFiles(id, job, endpoint) as files:
        files.write(requests, Results(context.sessions, context.store, job, endpoint))
        output, errors = files.store(context.store, *objects)
    with context.sessions.begin() as session:
        named = batches.finalize(session, id, files.summary, output, errors)
    context.store.delete(set(objects) - named)
