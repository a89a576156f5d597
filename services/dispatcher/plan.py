"""What the dispatcher does with a plan shard: finds the job's manifest, reads it, and writes its slices."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from sqlalchemy.dialects.postgresql import insert as upsert

from services.dispatcher.batches.planning import BatchPlan
from services.dispatcher.manifests.detection import open_object, open_prefix
from services.dispatcher.manifests.reading import Reading
from shared.catalog import Catalog
from shared.db import Sessions
from shared.errors import InvalidRequestError, JobError, NotFoundError
from shared.items import MediaLocation, Split
from shared.jobs.encoders import with_models
from shared.jobs.files import get_file, locate_files, pin_files
from shared.jobs.models import JobFile
from shared.jobs.records import Lease, Plan
from shared.planning import Place, PlanRequest, Row, Source, plan_rows
from shared.storage import keys
from shared.storage.imports import allowed_prefix
from shared.worker.context import WorkerContext
from shared.worker.control import Control


@dataclass(frozen=True)
class ManifestPlace:
    """Where a job's manifest is: an object of the platform's bucket, or a folder of a bucket.

    `validation` is the object of a second one, whose items validate.
    """

    key: str | None = None
    bucket: str = ""
    folder: str = ""
    validation: str | None = None


class PlanJob:
    """Handler of the plan stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext):
        self._context = context

    def load(self, lease: Lease, control: Control) -> None:
        """Planning needs no model."""

    def prepare(self, lease: Lease, control: Control) -> ManifestPlace:
        """Finds the manifest. Raises JobError if the tenant has no such file, or may not read the prefix."""
        source = PlanRequest.of(lease.request).input
        if source is None:
            return ManifestPlace(keys.inline_items(lease.job_id))
        try:
            if source.s3_prefix is not None:
                bucket, folder = self._allowed(source.s3_prefix, lease.tenant)
                return ManifestPlace(bucket=bucket, folder=folder)
            validation = (lease.request.get("openai") or {}).get("validation_file")
            return ManifestPlace(
                control.patiently(partial(self._key_of, lease.tenant, source.file_id or "")),
                validation=validation and control.patiently(partial(self._key_of, lease.tenant, validation)),
            )
        except (InvalidRequestError, NotFoundError) as error:
            raise JobError(error.message, code=error.error_code) from error

    def run(self, lease: Lease, prepared: ManifestPlace, control: Control) -> Plan:
        """Streams the manifest into slices. An outage hands the shard back, and planning starts over."""
        context, request = self._context, PlanRequest.of(lease.request)
        catalog = control.patiently(lambda: self._catalog(lease, request))
        reading = Reading(context.store, context.settings.limits, lease.job_id, lease.token, control.check)
        batch = BatchPlan.of(reading, prepared.key or "", lease.request)
        if batch is not None and (refused := batch.refused()) is not None:
            return refused
        source = _open(reading, prepared) if batch is None else Source(batch.rows())
        plan = plan_rows(
            source,
            request,
            Place(context.store, lease.job_id, lease.token),
            catalog=catalog,
            limits=context.settings.limits,
            fetching=context.settings.fetching,
            resolve_files=partial(find_files, context.sessions, lease),
            check=control.check,
        )
        return plan if batch is None else batch.counted(plan)

    def store(self, lease: Lease, output: Plan, control: Control) -> Plan:  # noqa: ARG002
        """Everything is stored already: slices are written while the manifest is read."""
        return output

    def _catalog(self, lease: Lease, request: PlanRequest) -> Catalog:
        """The catalogue, and the models among the job's encoders. Raises JobError."""
        try:
            with self._context.sessions() as session:
                return with_models(session, lease.tenant, self._context.catalog, request.encoders)
        except (InvalidRequestError, NotFoundError) as error:
            raise JobError(error.message, code=error.error_code) from error

    def _allowed(self, s3_prefix: str, tenant: str) -> tuple[str, str]:
        settings = self._context.settings
        return allowed_prefix(
            s3_prefix, tenant=tenant, own_bucket=settings.s3_bucket, import_buckets=settings.import_buckets
        )

    def _key_of(self, tenant: str, file_id: str) -> str:
        with self._context.sessions() as session:
            return get_file(session, tenant, file_id)[1]


def _open(reading: Reading, place: ManifestPlace) -> Source:
    if place.key is None:
        return open_prefix(reading, place.bucket, place.folder)
    source = open_object(reading, place.key)
    if place.validation is None:
        return source
    validating = map(_validating, open_object(reading, place.validation).rows)
    return replace(source, rows=chain(source.rows, validating))


def _validating(row: Row) -> Row:
    """A row of the second manifest: it has a name of its own, though its line may be that of another row."""
    if row.problems:
        return row
    return replace(row, fields={"id": f"validation-line-{row.line}", "split": Split.VALIDATION, **row.fields})


def find_files(sessions: Sessions, lease: Lease, ids: Collection[str]) -> Mapping[str, MediaLocation]:
    """Where the tenant's files are. They belong to the job from now on: none is deleted while it runs."""
    with sessions.begin() as session:
        found = pin_files(session, lease.tenant, ids)
        if found:
            rows = [{"job_id": lease.job_id, "file_id": id} for id in found]
            session.execute(upsert(JobFile).on_conflict_do_nothing(), rows)
        return locate_files(session, lease.tenant, found)
