"""What the commands that create jobs share: their options, the upload, and what is printed."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from services.client.client import Client
from services.client.commands.options import Connection
from services.client.commands.results import download, format_of
from services.client.commands.transfers import upload_bar
from services.client.commands.watch import exit_unless_succeeded, watch_to_the_end
from services.client.rendering import messages, print_json
from services.client.requests import ResultFormat
from services.client.uploads import OnBytes
from shared.queues import Modality
from shared.schemas import Job

ENCODERS = "Encoders"
JOB = "The job"

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show progress until the job has ended.")]
TextEncoder = Annotated[
    str | None, typer.Option("--text", metavar="ENCODER", help="Text encoder, or `none`.", rich_help_panel=ENCODERS)
]
ImageEncoder = Annotated[
    str | None, typer.Option("--image", metavar="ENCODER", help="Image encoder, or `none`.", rich_help_panel=ENCODERS)
]
AudioEncoder = Annotated[
    str | None, typer.Option("--audio", metavar="ENCODER", help="Audio encoder, or `none`.", rich_help_panel=ENCODERS)
]
StopWords = Annotated[
    list[str] | None, typer.Option(metavar="LANGUAGE", help="Remove stop words: en, zh.", rich_help_panel=ENCODERS)
]
Lowercase = Annotated[bool, typer.Option("--lowercase", help="Make text lower case.", rich_help_panel=ENCODERS)]
ShardSize = Annotated[int | None, typer.Option(help="Items in one shard.", rich_help_panel=JOB)]
Priority = Annotated[int | None, typer.Option(help="Higher goes first, from -10 to 10.", rich_help_panel=JOB)]
Timeout = Annotated[
    int | None,
    typer.Option(metavar="SECONDS", help="The job fails unless it has ended by then.", rich_help_panel=JOB),
]


def only_given(**fields: Any) -> Any:
    """The fields that have a value, so that the gateway's defaults hold for the rest."""
    return {name: value for name, value in fields.items() if value is not None}


def encoding(
    text: str | None, image: str | None, audio: str | None, stop_words: list[str] | None, lowercase: bool
) -> dict[str, Any]:
    """What a job says about how items are encoded, as far as it was given."""
    named = {Modality.TEXT: text, Modality.IMAGE: image, Modality.AUDIO: audio}
    chosen = {m.value: None if id == "none" else id for m, id in named.items() if id is not None}
    preprocessing = only_given(stop_words=stop_words or None, lowercase=lowercase or None)
    fields: dict[str, Any] = only_given(
        encoders=chosen or None, preprocessing={"text": preprocessing} if preprocessing else None
    )
    return fields


def create(here: Connection, call: Callable[[Client, OnBytes], Job]) -> Job:
    """Creates a job by `call`, with the progress of its upload on stderr."""
    with here.client() as client, upload_bar(messages()) as on_bytes:
        return call(client, on_bytes)


def follow(here: Connection, job: Job, *, watch: bool, output: Path | None, as_json: bool) -> None:
    """Prints a new job's id, watches it if that is wanted or needed for its results, and writes them to `output`."""
    if not as_json:
        print(job.id)
    if watch or output is not None:
        job = watch_to_the_end(here, job.id)
    if as_json:
        print_json(job)
    if watch or output is not None:
        exit_unless_succeeded(job)
    if output is not None:
        download(here, job.id, output)


def check_output(output: Path | None, *formats: ResultFormat) -> None:
    """Raises typer.BadParameter before anything is done, unless the file's suffix is one of the formats (of any)."""
    if output is not None:
        format_of(output, *formats)
