"""`trivium train` and `trivium predict`: from labelled items to a model, and what it says of others."""

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
from services.client.commands.options import AsJson, Connection, Metadata, connection, json_pairs, pairs
from services.client.commands.watch import exit_unless_succeeded, watch_to_the_end
from services.client.job_options import FineTuneOptions, PredictOptions
from services.client.model_tables import scores_table
from services.client.rendering import messages, print_json
from shared.fine_tuning import Preset, TrainEncoder, Training
from shared.generation import JobGeneration
from shared.language_tuning import How
from shared.schemas import Job

_TRAINING = "Training"
_LANGUAGE = "Of language models"
_DATA = "Which items train and which judge"
_PROMPTING = "Prompts (--method prompt)"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A JSONL manifest, a folder, a tar, zip or Parquet file, file-…, s3://… or job-…"
    ),
]
MethodName = Literal["classifier", "regressor", "align", "prompt"]
FusionName = Literal["concat", "weighted", "align", "gated", "low_rank", "attention", "late"]

WatchTraining = Annotated[
    bool, typer.Option("--watch", "-w", help="Show progress, and at the end how good the model is.")
]
MethodOption = Annotated[
    MethodName | None,
    typer.Option(
        metavar="METHOD",
        help="classifier (of `label`), regressor (of `target`), align: all in one space; or prompt, of a pretrained "
        "model.",
    ),
]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", metavar="PROMPT", help="prompt-…; of several the best is kept.", rich_help_panel=_PROMPTING
    ),
]
LanguageModelOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="What is asked; encoders such as CLIP's otherwise.", rich_help_panel=_PROMPTING),
]
HowOption = Annotated[
    How | None,
    typer.Option(metavar="HOW", help="hard: nothing is trained; context: learned words.", rich_help_panel=_PROMPTING),
]
PresetOption = Annotated[
    Preset | None, typer.Option(help="fast: one fusion; good: the best of a few; best: several, combined.")
]
FusionOption = Annotated[
    FusionName | None,
    typer.Option(
        metavar="METHOD",
        help=f"{', '.join(get_args(FusionName)[:-1])} or {get_args(FusionName)[-1]}, instead of the preset's.",
        rich_help_panel=_TRAINING,
    ),
]
FusionParameterOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Of --fusion, such as dimension=64.", rich_help_panel=_TRAINING),
]
TrainingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help=f"A setting; may be repeated: {', '.join(Training.model_fields)}.",
        rich_help_panel=_TRAINING,
    ),
]
LabelsOption = Annotated[
    Literal["one", "several"] | None,
    typer.Option(help="How many an item can have; told from the items otherwise.", rich_help_panel=_TRAINING),
]
TrainEncoderOption = Annotated[
    TrainEncoder | None,
    typer.Option(
        metavar="HOW",
        help="frozen, or trained too: lora (a few weights), full, or border (around pictures).",
        rich_help_panel=_TRAINING,
    ),
]
TrialsOption = Annotated[
    int | None, typer.Option(help="Search better settings with this many trials.", rich_help_panel=_TRAINING)
]
SearchSecondsOption = Annotated[
    float | None, typer.Option(help="No new trial after so long.", rich_help_panel=_TRAINING)
]
ValidationOption = Annotated[
    float | None, typer.Option(help="Share of items that choose among models.", rich_help_panel=_DATA)
]
TestOption = Annotated[
    float | None, typer.Option(help="Share of items for the final judgement.", rich_help_panel=_DATA)
]
FoldsOption = Annotated[
    int | None, typer.Option(help="Cross-validation, beside the final model.", rich_help_panel=_DATA)
]
MaxFailedFractionOption = Annotated[
    float | None, typer.Option(help="More failed items, and nothing is trained.", rich_help_panel=_DATA)
]


PromptOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEMPLATE", help="With {text}, {image} and {audio}, for items without messages.",
        rich_help_panel=_LANGUAGE,
    ),
]  # fmt: skip
GenerationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help=f"A setting; may be repeated: {', '.join(JobGeneration.model_fields)}.",
        rich_help_panel=_LANGUAGE,
    ),
]


def train(
    context: typer.Context,
    source: Source,
    watch: WatchTraining = False,
    method: MethodOption = None,
    preset: PresetOption = None,
    fusion: FusionOption = None,
    fusion_parameter: FusionParameterOption = None,
    training: TrainingOption = None,
    labels: LabelsOption = None,
    train_encoder: TrainEncoderOption = None,
    prompt: PromptsOption = None,
    language_model: LanguageModelOption = None,
    how: HowOption = None,
    trials: TrialsOption = None,
    search_seconds: SearchSecondsOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    folds: FoldsOption = None,
    max_failed_fraction: MaxFailedFractionOption = None,
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
    trivium train posts.tar --method prompt \\
        --text none --image clip-vit-base-patch32-image --audio none --prompt prompt-01k9w0d4n6s8v1x3z5b7d9f2hk
    ```
    """
    options: FineTuneOptions = only_given(
        **encoding(text, image, audio, stop_words, lowercase),
        method=method,
        preset=preset,
        fusion=_fusion(fusion, fusion_parameter),
        training=json_pairs(training, "--set") or None,
        splitting=only_given(validation=validation, test=test, folds=folds) or None,
        search=only_given(trials=trials, seconds=search_seconds) or None,
        multi_label=None if labels is None else labels == "several",
        train_encoder=train_encoder,
        prompts=prompt,
        language_model=language_model,
        how=how,
        max_failed_fraction=max_failed_fraction,
        shard_size=shard_size,
        priority=priority,
        timeout_seconds=timeout,
        metadata=pairs(metadata, "--metadata") or None,
    )
    here = connection(context)
    job = create(here, lambda client, on_bytes: client.fine_tune(source, on_bytes=on_bytes, **options))
    if watch:
        _watch(here, job, as_json=as_json)
    else:
        follow(here, job, watch=False, output=None, as_json=as_json)


def _watch(here: Connection, job: Job, *, as_json: bool) -> None:
    """Shows how training goes, then how good the model is; its id goes to stdout."""
    messages().print(job.id)
    job = watch_to_the_end(here, job.id)
    if as_json:
        print_json(job)
    exit_unless_succeeded(job)
    with here.client() as client:
        model = client.models.get(job.models[-1])  # before it come the encoders that were trained for it
    if model.fine_tuned is not None:
        messages().print(scores_table(model.fine_tuned))
    if not as_json:
        print(model.id)


def predict(
    context: typer.Context,
    source: Source,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="What `trivium train` made, or a language model.")
    ],
    watch: Watch = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Watch, then write the predictions here (.parquet or .jsonl)."),
    ] = None,
    no_contributions: Annotated[
        bool, typer.Option("--no-contributions", help="Leave out how much each modality moved each prediction.")
    ] = False,
    prompt: PromptOption = None,
    generation: GenerationOption = None,
    shard_size: ShardSize = None,
    priority: Priority = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    as_json: AsJson = False,
) -> None:
    """Let a model say what items are.

    SOURCE is what `trivium submit` takes, encoded as the model's own items were, or the id of a features job. There is
    one row an item: `prediction` and, of a classifier, `probability` and `probabilities`; `contribution_image` says how
    much the picture moved the prediction (Shapley values), and so on. A language model answers in words: to an item's
    own `messages`, or else to the prompt that it was tuned with. The job's id goes to stdout, the rest to stderr.

    Examples:

    ```
    model=$(trivium train posts.tar --watch)
    trivium predict new.jsonl --model $model -o predictions.parquet
    trivium predict $job --model $model -o predictions.jsonl
    trivium predict posts.jsonl --model gemma3-270m --prompt "Post: {text} Topic:" --set max_tokens=8 -o topics.jsonl
    ```
    """
    check_output(output, "jsonl", "parquet")
    options: PredictOptions = only_given(
        model=model,
        contributions=False if no_contributions else None,
        prompt=None if prompt is None else {"template": prompt},
        generation=json_pairs(generation, "--set") or None,
        shard_size=shard_size,
        priority=priority,
        timeout_seconds=timeout,
        metadata=pairs(metadata, "--metadata") or None,
    )
    here = connection(context)
    job = create(here, lambda client, on_bytes: client.predict(source, on_bytes=on_bytes, **options))
    follow(here, job, watch=watch, output=output, as_json=as_json)


def _fusion(method: FusionName | None, parameters: list[str] | None) -> dict[str, Any] | None:
    given = json_pairs(parameters, "--fusion-parameter")
    if method is None and given:
        raise typer.BadParameter("it is of a fusion: give --fusion, too", param_hint="--fusion-parameter")
    return None if method is None else {"method": method, "parameters": given}
