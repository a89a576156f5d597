"""`trivium keys`: API keys, for administrators."""

from typing import Annotated

import typer

from services.client.commands.options import AsJson, connection
from services.client.rendering import keys_table, messages, print_entries, print_json

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys (with a key of an administrator).")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="To tell keys apart.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose jobs and files it opens; made by naming it.")] = "default",
    admin: Annotated[bool, typer.Option("--admin", help="It may manage keys, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it: the only time it is shown.

    Example:

    ```
    export TRIVIUM_API_KEY=$(trivium keys create --tenant research --name notebook)
    ```
    """
    with connection(context).client() as client:
        key = client.keys.create(name=name, tenant=tenant, scope="admin" if admin else "user")
    if as_json:
        print_json(key)
        return
    messages().print(f"{key.id} of tenant {key.tenant} ({key.scope}); the key is shown this once:")
    print(key.key)


@app.command("list")
def list_keys(context: typer.Context, as_json: AsJson = False) -> None:
    """List the keys, without what is secret."""
    with connection(context).client() as client:
        print_entries(client.keys.list(), keys_table, as_json=as_json)


@app.command()
def revoke(context: typer.Context, key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")]) -> None:
    """Revoke a key: it is refused from now on."""
    with connection(context).client() as client:
        client.keys.revoke(key)
    messages().print(f"{key} is revoked.")
