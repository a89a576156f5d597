"""`trivium train` and `trivium predict`: from labelled items to a model, and what it says of others."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from services.client.commands.creating import (
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
from services.client.commands.watch import exit_unless_succeeded, watch_to_the_end
from services.client.job_options import FineTuneOptions, PredictOptions
from services.client.model_tables import scores_table
from services.client.rendering import messages, print_json
from shared.fine_tuning import Method, Preset, TrainEncoder, Training

_TRAINING = "Training"
_DATA = "Which items train and which judge"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A JSONL manifest, a folder, a tar, zip or Parquet file, file-…, s3://… or job-…"
    ),
]
FusionName = Literal["concat", "weighted", "align", "gated", "low_rank", "attention", "late"]


def train(
    context: typer.Context,
    source: Source,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show progress, and at the end how good the model is.")
    ] = False,
    method: Annotated[
        Method | None,
        typer.Option(
            metavar="METHOD", help="classifier (of `label`), regressor (of `target`), or align: all in one space."
        ),
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="fast: one fusion; good: the best of a few; best: several, combined.")
    ] = None,
    fusion: Annotated[
        FusionName | None,
        typer.Option(
            metavar="METHOD",
            help=f"{', '.join(get_args(FusionName)[:-1])} or {get_args(FusionName)[-1]}, instead of the preset's.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    fusion_parameter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of --fusion, such as dimension=64.", rich_help_panel=_TRAINING),
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"A setting; may be repeated: {', '.join(Training.model_fields)}.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    labels: Annotated[
        Literal["one", "several"] | None,
        typer.Option(help="How many an item can have; told from the items otherwise.", rich_help_panel=_TRAINING),
    ] = None,
    train_encoder: Annotated[
        TrainEncoder | None,
        typer.Option(
            metavar="HOW", help="frozen, or trained too: lora (a few weights) or full.", rich_help_panel=_TRAINING
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Search better settings with this many trials.", rich_help_panel=_TRAINING)
    ] = None,
    search_seconds: Annotated[
        float | None, typer.Option(help="No new trial after so long.", rich_help_panel=_TRAINING)
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of items that choose among models.", rich_help_panel=_DATA)
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Share of items for the final judgement.", rich_help_panel=_DATA)
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validation, beside the final model.", rich_help_panel=_DATA)
    ] = None,
    max_failed_fraction: Annotated[
        float | None, typer.Option(help="More failed items, and nothing is trained.", rich_help_panel=_DATA)
    ] = None,
    text: TextEncoder = None,
    image: ImageEncoder = None,
    audio: AudioEncoder = None,
    stop_words: StopWords = None,
    lowercase: Lowercase = False,
    shard_size: ShardSize = None,
    priority: Priority = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on labelled items.

    SOURCE is what `trivium submit` takes, or the id of a features job, whose vectors are used as they are. Items have a
    `label` (or several) for a classifier, a number as `target` for a regressor. Those with a `split` of `train`,
    `validation` or `test` keep it; the others are divided at random.

    The job's id goes to stdout; with --watch the model's id instead, and to stderr how well each modality alone and the
    fusion do on items that took no part in training.

    Examples:

    ```
    trivium train data.jsonl --watch
    trivium train job-01k9w0c3v8e6m5j2k1x7r4t9qz --preset best --watch
    trivium train scans.tar --method regressor --fusion gated --set epochs=30
    model=$(trivium train posts.tar --set class_weights=balanced --watch)
    ```
    """
    options: FineTuneOptions = only_given(
        **encoding(text, image, audio, stop_words, lowercase),
        method=method,
        preset=preset,
        fusion=_fusion(fusion, fusion_parameter),
        training=_values(training, "--set") or None,
        splitting=only_given(validation=validation, test=test, folds=folds) or None,
        search=only_given(trials=trials, seconds=search_seconds) or None,
        multi_label=None if labels is None else labels == "several",
        train_encoder=train_encoder,
        max_failed_fraction=max_failed_fraction,
        shard_size=shard_size,
        priority=priority,
        timeout_seconds=timeout,
        metadata=pairs(metadata, "--metadata") or None,
    )
    here = connection(context)
    job = create(here, lambda client, on_bytes: client.fine_tune(source, on_bytes=on_bytes, **options))
    if not watch:
        follow(here, job, watch=False, output=None, as_json=as_json)
        return
    messages().print(job.id)
    job = watch_to_the_end(here, job.id)
    if as_json:
        print_json(job)
    exit_unless_succeeded(job)
    with here.client() as client:
        model = client.models.get(job.models[0])
    if model.fine_tuned is not None:
        messages().print(scores_table(model.fine_tuned))
    if not as_json:
        print(model.id)


def predict(
    context: typer.Context,
    source: Source,
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="What `trivium train` made.")],
    watch: Watch = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Watch, then write the predictions here (.parquet or .jsonl)."),
    ] = None,
    no_contributions: Annotated[
        bool, typer.Option("--no-contributions", help="Leave out how much each modality moved each prediction.")
    ] = False,
    shard_size: ShardSize = None,
    priority: Priority = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    as_json: AsJson = False,
) -> None:
    """Let a model say what items are.

    SOURCE is what `trivium submit` takes, encoded as the model's own items were, or the id of a features job. There is
    one row an item: `prediction` and, of a classifier, `probability` and `probabilities`; `contribution_image` says how
    much the picture moved the prediction (Shapley values), and so on. The job's id goes to stdout, everything else to
    stderr.

    Examples:

    ```
    model=$(trivium train posts.tar --watch)
    trivium predict new.jsonl --model $model -o predictions.parquet
    trivium predict $job --model $model -o predictions.jsonl
    ```
    """
    check_output(output, "jsonl", "parquet")
    options: PredictOptions = only_given(
        model=model,
        contributions=False if no_contributions else None,
        shard_size=shard_size,
        priority=priority,
        timeout_seconds=timeout,
        metadata=pairs(metadata, "--metadata") or None,
    )
    here = connection(context)
    job = create(here, lambda client, on_bytes: client.predict(source, on_bytes=on_bytes, **options))
    follow(here, job, watch=watch, output=output, as_json=as_json)


def _fusion(method: FusionName | None, parameters: list[str] | None) -> dict[str, Any] | None:
    given = _values(parameters, "--fusion-parameter")
    if method is None and given:
        raise typer.BadParameter("it is of a fusion: give --fusion, too", param_hint="--fusion-parameter")
    return None if method is None else {"method": method, "parameters": given}


def _values(given: list[str] | None, option: str) -> dict[str, Any]:
    """Pairs whose values are JSON, or words without quotes."""
    return {name: _value(text) for name, text in pairs(given, option).items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
