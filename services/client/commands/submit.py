"""`trivium submit`: from files on this machine to a job."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from services.client.commands.options import AsJson, Connection, Metadata, connection, pairs
from services.client.commands.results import download, format_of
from services.client.commands.watch import exit_unless_succeeded, watch_to_the_end
from services.client.job_options import FeaturesOptions
from services.client.rendering import messages, print_json
from shared.queues import Modality
from shared.schemas import FusionMethod, Job, UntrainedFusion

_ENCODERS = "Encoders"
_JOB = "The job"

TextEncoder = Annotated[
    str | None, typer.Option("--text", metavar="ENCODER", help="Text encoder, or `none`.", rich_help_panel=_ENCODERS)
]
ImageEncoder = Annotated[
    str | None, typer.Option("--image", metavar="ENCODER", help="Image encoder, or `none`.", rich_help_panel=_ENCODERS)
]
AudioEncoder = Annotated[
    str | None, typer.Option("--audio", metavar="ENCODER", help="Audio encoder, or `none`.", rich_help_panel=_ENCODERS)
]


def submit(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A JSONL manifest, a folder, a tar, zip or Parquet file, file-… or s3://…"
        ),
    ],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show progress until the job has ended.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Watch, then write the features here (.parquet, .jsonl or .npz)."),
    ] = None,
    text: TextEncoder = None,
    image: ImageEncoder = None,
    audio: AudioEncoder = None,
    stop_words: Annotated[
        list[str] | None,
        typer.Option(metavar="LANGUAGE", help="Remove stop words: en, zh.", rich_help_panel=_ENCODERS),
    ] = None,
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Make text lower case.", rich_help_panel=_ENCODERS)
    ] = False,
    fusion: Annotated[UntrainedFusion | None, typer.Option(help="How vectors are fused.", rich_help_panel=_JOB)] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="MODALITY=WEIGHT", help="For weighted fusion; may be repeated.", rich_help_panel=_JOB),
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="Items in one shard.", rich_help_panel=_JOB)] = None,
    priority: Annotated[
        int | None, typer.Option(help="Higher goes first, from -10 to 10.", rich_help_panel=_JOB)
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="The job fails unless it has ended by then.", rich_help_panel=_JOB),
    ] = None,
    metadata: Metadata = None,
    as_json: AsJson = False,
) -> None:
    """Upload a manifest with its media and create a features job.

    Each line of a JSONL manifest is one item:

    ```
    {"id": "a1", "text": "a red bus", "image": "pictures/a1.png", "audio": "sounds/a1.ogg", "label": "vehicle"}
    ```

    Paths are relative to the manifest; what it names is packed and uploaded in one stream. In a folder without a
    `manifest.jsonl`, or an archive, files of one name but for the suffix are one item. The job's id goes to stdout,
    everything else to stderr.

    Examples:

    ```
    trivium submit data.jsonl --watch
    trivium submit photos/ --text none --audio none -o features.parquet
    trivium submit posts.tar --text bert-base-uncased --fusion weighted --weight text=2 --weight image=1
    job=$(trivium submit data.jsonl)
    ```
    """
    if output is not None:
        format_of(output)
    options = _options(
        encoders={Modality.TEXT: text, Modality.IMAGE: image, Modality.AUDIO: audio},
        text_preprocessing={"stop_words": stop_words, "lowercase": lowercase or None},
        fusion=_fusion(fusion, weight),
        plain={
            "shard_size": shard_size,
            "priority": priority,
            "timeout_seconds": timeout,
            "metadata": pairs(metadata, "--metadata") or None,
        },
    )
    here = connection(context)
    job = _create(here, source, options)
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


def _create(here: Connection, source: str, options: FeaturesOptions) -> Job:
    console = messages()
    columns = (TextColumn("upload "), BarColumn(bar_width=32), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    progress.disable = not console.is_terminal
    bar = progress.add_task("upload", visible=False)

    def on_bytes(sent: int, total: int | None) -> None:
        progress.update(bar, completed=sent, total=total, visible=True)

    with here.client() as client, progress:
        return client.features(source, on_bytes=on_bytes, **options)


def _fusion(method: UntrainedFusion | None, weights: list[str] | None) -> dict[str, Any] | None:
    if method is None and not weights:
        return None
    try:
        given = {modality: float(value) for modality, value in pairs(weights, "--weight").items()}
    except ValueError as error:
        raise typer.BadParameter("a weight is a number", param_hint="--weight") from error
    return {"method": method or FusionMethod.WEIGHTED, "weights": given}


def _options(
    *,
    encoders: dict[Modality, str | None],
    text_preprocessing: dict[str, Any],
    fusion: dict[str, Any] | None,
    plain: dict[str, Any],
) -> FeaturesOptions:
    """Only what was given, so that the gateway's defaults hold for the rest."""
    chosen = {m.value: None if id == "none" else id for m, id in encoders.items() if id is not None}
    text = {name: value for name, value in text_preprocessing.items() if value}
    fields: dict[str, Any] = {
        "encoders": chosen or None,
        "preprocessing": {"text": text} if text else None,
        "fusion": fusion,
        **plain,
    }
    given: Any = {name: value for name, value in fields.items() if value is not None}
    options: FeaturesOptions = given
    return options
