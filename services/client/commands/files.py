"""`trivium files`: uploaded files."""

from pathlib import Path
from typing import Annotated

import typer

from services.client.commands.options import AsJson, connection
from services.client.rendering import files_table, messages, print_entries, print_json

app = typer.Typer(no_args_is_help=True, help="List, upload and delete files.")


@app.command("list")
def list_files(context: typer.Context, as_json: AsJson = False) -> None:
    """List the uploaded files, newest first."""
    with connection(context).client() as client:
        print_entries(client.files.list(), files_table, as_json=as_json)


@app.command()
def upload(
    context: typer.Context, path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], as_json: AsJson = False
) -> None:
    """Upload a file and print its id, for `trivium submit file-…` or an item's `image` or `audio`.

    Content is kept once, however often it is uploaded.
    """
    with connection(context).client() as client:
        file = client.files.upload(path)
    if as_json:
        print_json(file)
    else:
        print(file.id)


@app.command()
def delete(context: typer.Context, file: Annotated[str, typer.Argument(metavar="FILE", help="The file's id.")]) -> None:
    """Delete a file; refused while a running job reads it."""
    with connection(context).client() as client:
        client.files.delete(file)
    messages().print(f"{file} is deleted.")
