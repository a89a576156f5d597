"""The `trivium` command line. Exit status: 0 done, 1 an error or a job that did not succeed, 2 wrong usage."""

from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from services.client.commands import (
    chat,
    files,
    jobs,
    keys,
    prompts,
    registry,
    results,
    search,
    stack,
    submit,
    train,
    watch,
)
from services.client.commands.options import Connection
from services.client.errors import ApiError
from services.client.rendering import messages
from shared.errors import TriviumError
from shared.version import trivium_version


class _Commands(TyperGroup):
    """Turns deliberate errors into one line and exit status 1."""

    def invoke(self, context: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(context)
        except TriviumError as error:
            messages().print(Text.assemble(("Error: ", "bold red"), describe(error)))
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn text, pictures and sound into features, fuse them, and train models on them.",
    epilog="The gateway is found by --url or TRIVIUM_URL, else in the folder .trivium, where `trivium up` runs one.",
)
app.command()(submit.submit)
app.command()(train.train)
app.command()(train.predict)
app.command()(search.index)
app.command()(search.search)
app.command()(chat.chat)
app.command()(jobs.jobs)
app.command()(jobs.show)
app.command("watch")(watch.watch_job)
app.command()(results.results)
app.command()(results.errors)
app.command()(jobs.cancel)
app.command()(jobs.retry)
app.command()(jobs.delete)
app.command()(registry.models)
app.command()(registry.workers)
app.add_typer(registry.model, name="model")
app.add_typer(prompts.app, name="prompts")
app.add_typer(files.app, name="files")
app.add_typer(keys.app, name="keys")
app.command()(stack.up)
app.command()(stack.demo)
app.command()(stack.demo_instruct)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(trivium_version())
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="TRIVIUM_URL", help="The gateway's base URL.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TRIVIUM_API_KEY", help="An API key.", show_envvar=True)] = None,
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Remembers the global options for the command that follows."""
    given: Connection = context.obj or Connection()
    context.obj = Connection(url or given.url, api_key or given.api_key, given.transport)


def describe(error: TriviumError) -> str:
    """An error in one line: what happened, then what finds it again."""
    notes = [error.error_code]
    if error.param:
        notes.append(f"at {error.param}")
    if isinstance(error, ApiError) and error.request_id:
        notes.append(f"request {error.request_id}")
    return f"{error.message} ({', '.join(notes)})"


def main() -> None:
    """The entry point."""
    app()
