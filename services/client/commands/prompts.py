"""`trivium prompts`: how items and their labels are put to models."""

import base64
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from services.client.commands.options import AsJson, Metadata, connection, pairs
from services.client.errors import ClientError
from services.client.rendering import messages, output, print_entries, print_json, prompt_details, prompts_table
from shared.items import Item
from shared.prompts import PromptTemplate

app = typer.Typer(no_args_is_help=True, help="Store prompts, show what they make of an item, list and delete them.")

PromptId = Annotated[
    str, typer.Argument(metavar="PROMPT", help="The prompt's id, such as prompt-01k9w0d4n6s8v1x3z5b7d9f2hk.")
]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="One that is there already gets its next version.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A JSON file; its fields are below.")
    ],
    metadata: Metadata = None,
    as_json: AsJson = False,
) -> None:
    """Store a prompt and print its id, which jobs can name.

    Fields, all of them optional: `template` (a question with {text}, {image} and {audio}), `system`, `verbalizers`
    (label to words), `class_templates` (with {label}, for dual encoders), `image_text` (`{"text": …}`, drawn on each
    picture), `language`.

    Example:

    ```
    echo '{"template": "Is this a rumour?\\n{text}", "verbalizers": {"rumour": ["yes"], "news": ["no"]}}' > rumour.json
    trivium prompts create rumour rumour.json
    ```
    """
    try:
        prompt = PromptTemplate.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or str(file)
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise ClientError(message, code="invalid_prompt") from error
    with connection(context).client() as client:
        stored = client.prompts.create(name, prompt, metadata=pairs(metadata, "--metadata"))
    if as_json:
        print_json(stored)
        return
    messages().print(f"Version {stored.version} of {stored.name}.")
    print(stored.id)


@app.command("list")
def list_prompts(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(help="Only versions of this name.")] = None,
    language: Annotated[str | None, typer.Option(help="Only those in this language, such as zh.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="Of each name its newest version alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the prompts, newest first."""
    with connection(context).client() as client:
        found = client.prompts.list(name=name, language=language, newest=newest)
        print_entries(found, prompts_table, as_json=as_json)


@app.command()
def show(context: typer.Context, prompt: PromptId, as_json: AsJson = False) -> None:
    """Show a prompt."""
    with connection(context).client() as client:
        found = client.prompts.get(prompt)
    if as_json:
        print_json(found)
    else:
        output().print(prompt_details(found))


@app.command()
def preview(
    context: typer.Context,
    prompt: PromptId,
    text: Annotated[str | None, typer.Option(help="The item's text.")] = None,
    image: Annotated[bool, typer.Option("--image", help="The item has a picture.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="The item has a sound.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write the words that are drawn on pictures here, as a PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what becomes of an item.

    Example:

    ```
    trivium prompts preview prompt-01k9w0d4n6s8v1x3z5b7d9f2hk --text "The bridge is closed" --image
    ```
    """
    given = {"text": text, "image": "picture" if image else None, "audio": "sound" if audio else None}
    if not any(value is not None for value in given.values()):
        given["text"] = ""
    with connection(context).client() as client:
        found = client.prompts.preview(prompt, Item(id="preview", **given))
    if picture is not None and found.image is not None:
        picture.write_bytes(base64.b64decode(found.image.partition(",")[2]))
    if as_json:
        print_json(found)
        return
    output().print(found.text)
    for label, texts in found.class_texts.items():
        output().print(f"{label}: {' | '.join(texts)}")


@app.command()
def delete(context: typer.Context, prompt: PromptId) -> None:
    """Delete one version of a prompt. Jobs that were given it keep what it said."""
    with connection(context).client() as client:
        client.prompts.delete(prompt)
    messages().print(f"{prompt} is deleted.")
