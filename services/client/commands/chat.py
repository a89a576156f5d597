"""`trivium chat`: talk to a language model."""

import base64
import mimetypes
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from services.client.client import Client
from services.client.commands.creating import only_given
from services.client.commands.options import AsJson, connection
from services.client.errors import ClientError
from services.client.job_options import ChatOptions
from services.client.rendering import messages as remarks
from services.client.rendering import print_json
from shared.queues import Modality

#: Larger pictures and sounds are uploaded first, and stay among the files.
_ENCLOSED_BYTES = 512 * 1024


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A language model: see `trivium models`.")],
    words: Annotated[str, typer.Argument(metavar="WORDS", help="What is said to it; - reads standard input.")],
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; may be repeated.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A sound; may be repeated.")] = None,
    system: Annotated[str | None, typer.Option(metavar="WORDS", help="What the model is told before.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The answer breaks off after so many.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest word.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same one gives the same answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say something to a language model, and see its answer as it comes.

    MODEL is one of the catalogue, or what `trivium train` made of one; of those that were tuned with pictures or
    sounds, these may come along. Whoever offers a chat of his own uses OpenAI's client with the gateway's address.

    Examples:

    ```
    trivium chat gemma3-270m "The capital of Japan is" --max-tokens 16 --temperature 0
    trivium chat $model "Which animal is it?" --image cat.png --audio meow.wav
    ```
    """
    options: ChatOptions = only_given(max_completion_tokens=max_tokens, temperature=temperature, seed=seed)
    told = sys.stdin.read() if words == "-" else words
    with connection(context).client() as client:
        parts = [_image(client, path) for path in image or ()] + [_audio(client, path) for path in audio or ()]
        conversation: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        conversation.append({"role": "user", "content": [*parts, {"type": "text", "text": told}] if parts else told})
        if as_json:
            print_json(client.chat.create(model=model, messages=conversation, **options))
            return
        _show(client, model, conversation, options)


def _show(client: Client, model: str, conversation: list[dict[str, Any]], options: ChatOptions) -> None:
    try:
        for chunk in client.chat.stream(model=model, messages=conversation, **options):
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
                if choice.finish_reason == "length":
                    remarks().print("\n(broken off: give more --max-tokens)", style="dim")
    finally:
        print()


def _image(client: Client, path: Path) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _reference(client, path, Modality.IMAGE)}}


def _audio(client: Client, path: Path) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": _reference(client, path, Modality.AUDIO)}}


def _reference(client: Client, path: Path, modality: Modality) -> str:
    """A `data:` URI, or the id of an uploaded file. Raises ClientError (`unreadable_file`)."""
    try:
        if path.stat().st_size > _ENCLOSED_BYTES:
            return client.files.upload(path).id
        data = path.read_bytes()
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror}.", code="unreadable_file") from error
    kind = mimetypes.guess_type(path.name)[0] or f"{modality}/*"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
