"""`trivium results` and `trivium errors`: what came out of a job, and what could not be used."""

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.filesize import decimal

from services.client.commands.options import AsJson, Connection, JobId, connection
from services.client.commands.transfers import download_bar
from services.client.rendering import errors_table, messages, print_entries
from services.client.requests import ResultFormat


def results(
    context: typer.Context,
    job: JobId,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; its suffix, .parquet, .jsonl or .npz, decides.")
    ],
) -> None:
    """Download a job's features or predictions as one file.

    The file appears when it is complete; a download that breaks off starts again.

    Examples:

    ```
    trivium results job-01k9w0c3v8e6m5j2k1x7r4t9qz -o features.parquet
    python -c 'import pandas; print(pandas.read_parquet("features.parquet"))'
    ```
    """
    download(connection(context), job, output)


def errors(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """List the items, and modalities of items, that could not be used, and why.

    Example:

    ```
    trivium errors job-01k9w0c3v8e6m5j2k1x7r4t9qz --json | jq -r .code | sort | uniq -c
    ```
    """
    with connection(context).client() as client:
        print_entries(client.jobs.errors(job), errors_table, as_json=as_json)


def download(here: Connection, job_id: str, path: Path) -> None:
    """Writes a job's features or predictions to `path`, with progress on stderr."""
    format, console = format_of(path), messages()
    with here.client() as client, download_bar(console) as on_bytes:
        client.jobs.results(job_id, path, format=format, on_bytes=on_bytes)
    console.print(f"Wrote {path} ({decimal(path.stat().st_size)}).")


def format_of(path: Path, *formats: ResultFormat) -> ResultFormat:
    """The format (of these, or of all) that a file's suffix names. Raises typer.BadParameter for any other suffix."""
    allowed: tuple[ResultFormat, ...] = formats or get_args(ResultFormat)
    for format in allowed:
        if path.suffix == f".{format}":
            return format
    known = ", ".join(f".{format}" for format in allowed)
    raise typer.BadParameter(f"the suffix of {path.name!r} is none of {known}", param_hint="--output")
