"""`trivium models`, `model` and `workers`: what the platform can do, and who does it."""

from pathlib import Path
from typing import Annotated

import typer

from services.client.commands.options import AsJson, connection
from services.client.commands.transfers import download_bar
from services.client.model_tables import model_details, models_table
from services.client.rendering import messages, output, print_entries, print_json, workers_table
from shared.queues import Modality

ModelId = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model's id, such as model-01k9w0e1a4b7c2d5f8g3h6j9km.")
]

model = typer.Typer(no_args_is_help=True, help="Show, download and delete a model.")


def models(
    context: typer.Context,
    modality: Annotated[Modality | None, typer.Option(help="Only those of this modality.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the encoders, and the models that jobs made with how good they are.

    Examples:

    ```
    trivium models
    trivium models --modality image --json | jq -r .id
    ```
    """
    with connection(context).client() as client:
        found = (model for model in client.models.list() if modality in {None, model.modality})
        print_entries(found, models_table, as_json=as_json)


@model.command()
def show(context: typer.Context, model: ModelId, as_json: AsJson = False) -> None:
    """Show everything about a model; of a trained one, how well each modality alone and the fusion do.

    Example:

    ```
    trivium model show model-01k9w0e1a4b7c2d5f8g3h6j9km
    trivium model show model-01k9w0e1a4b7c2d5f8g3h6j9km --json | jq .fine_tuned.metrics
    ```
    """
    with connection(context).client() as client:
        found = client.models.get(model)
    if as_json:
        print_json(found)
    else:
        output().print(model_details(found))


@model.command()
def download(
    context: typer.Context,
    model: ModelId,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder that is not there yet; the model's id by default.")
    ] = None,
) -> None:
    """Download all files of a model: weights (safetensors), configuration, metrics, the model card.

    Each file is checked against its sha256; the folder appears when all are there.

    Example:

    ```
    trivium model download model-01k9w0e1a4b7c2d5f8g3h6j9km -o models/posts
    ```
    """
    console, target = messages(), folder or Path(model)
    with connection(context).client() as client, download_bar(console) as on_bytes:
        client.models.download(model, target, on_bytes=on_bytes)
    console.print(f"Wrote {target}/: {', '.join(sorted(path.name for path in target.iterdir()))}.")


@model.command()
def delete(context: typer.Context, model: ModelId) -> None:
    """Delete a model that a job made; refused while a job needs it. This cannot be undone."""
    with connection(context).client() as client:
        client.models.delete(model)
    messages().print(f"{model} is deleted.")


def workers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the worker processes: their pool, what they have loaded and what they work on."""
    with connection(context).client() as client:
        print_entries(client.workers.list(), workers_table, as_json=as_json)
