"""`trivium models` and `trivium workers`: what the platform can do, and who does it."""

from typing import Annotated

import typer

from services.client.commands.options import AsJson, connection
from services.client.rendering import models_table, print_entries, workers_table
from shared.queues import Modality


def models(
    context: typer.Context,
    modality: Annotated[Modality | None, typer.Option(help="Only those of this modality.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the encoders, and the models that jobs made.

    Examples:

    ```
    trivium models
    trivium models --modality image --json | jq -r .id
    ```
    """
    with connection(context).client() as client:
        found = (model for model in client.models.list() if modality in {None, model.modality})
        print_entries(found, models_table, as_json=as_json)


def workers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the worker processes: their pool, what they have loaded and what they work on."""
    with connection(context).client() as client:
        print_entries(client.workers.list(), workers_table, as_json=as_json)
