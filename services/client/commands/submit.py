"""`trivium submit`: from files on this machine to features."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.client.commands.creating import (
    JOB,
    AudioEncoder,
    ImageEncoder,
    Lowercase,
    Priority,
    ShardSize,
    StopWords,
    TextEncoder,
    Timeout,
    Watch,
    check_output,
    create,
    encoding,
    follow,
    only_given,
)
from services.client.commands.options import AsJson, Metadata, connection, pairs
from services.client.job_options import FeaturesOptions
from shared.schemas import FusionMethod, UntrainedFusion


def submit(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A JSONL manifest, a folder, a tar, zip or Parquet file, file-… or s3://…"
        ),
    ],
    watch: Watch = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Watch, then write the features here (.parquet, .jsonl or .npz)."),
    ] = None,
    text: TextEncoder = None,
    image: ImageEncoder = None,
    audio: AudioEncoder = None,
    stop_words: StopWords = None,
    lowercase: Lowercase = False,
    fusion: Annotated[UntrainedFusion | None, typer.Option(help="How vectors are fused.", rich_help_panel=JOB)] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="MODALITY=WEIGHT", help="For weighted fusion; may be repeated.", rich_help_panel=JOB),
    ] = None,
    fusion_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Fused by a model that a job trained, instead.", rich_help_panel=JOB),
    ] = None,
    shard_size: ShardSize = None,
    priority: Priority = None,
    timeout: Timeout = None,
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
    check_output(output)
    options: FeaturesOptions = only_given(
        **encoding(text, image, audio, stop_words, lowercase),
        fusion=_fusion(fusion, weight, fusion_model),
        shard_size=shard_size,
        priority=priority,
        timeout_seconds=timeout,
        metadata=pairs(metadata, "--metadata") or None,
    )
    here = connection(context)
    job = create(here, lambda client, on_bytes: client.features(source, on_bytes=on_bytes, **options))
    follow(here, job, watch=watch, output=output, as_json=as_json)


def _fusion(method: UntrainedFusion | None, weights: list[str] | None, model: str | None) -> dict[str, Any] | None:
    if model is not None:
        if method is not None or weights:
            raise typer.BadParameter("a model decides alone how vectors are fused", param_hint="--fusion-model")
        return {"model": model}
    if method is None and not weights:
        return None
    try:
        given = {modality: float(value) for modality, value in pairs(weights, "--weight").items()}
    except ValueError as error:
        raise typer.BadParameter("a weight is a number", param_hint="--weight") from error
    return {"method": method or FusionMethod.WEIGHTED, "weights": given}
