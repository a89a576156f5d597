"""`trivium index` and `trivium search`: items that can be found by what is like them in another modality."""

from typing import Annotated

import typer
from rich.table import Table

from services.client.commands.creating import Priority, ShardSize, Timeout, Watch, create, follow, only_given
from services.client.commands.options import AsJson, Metadata, connection, json_pairs, pairs
from services.client.commands.train import Source
from services.client.job_options import IndexOptions
from services.client.rendering import output, print_json, table_of
from shared.items import Split
from shared.queues import Modality
from shared.search import SearchResults

_QUERY = "What to search by"
_SHOWN_TEXT = 60

Index = Annotated[str, typer.Argument(metavar="JOB", help="What `trivium index` printed.")]
Media = Annotated[str | None, typer.Option(metavar="FILE", help="A file, or file-….", rich_help_panel=_QUERY)]


def index(
    context: typer.Context,
    source: Source,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="What `trivium train --method align` made.")
    ],
    watch: Watch = False,
    shard_size: ShardSize = None,
    priority: Priority = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    as_json: AsJson = False,
) -> None:
    """Make items searchable by text, picture and sound.

    SOURCE is what `trivium submit` takes, or the id of a features job. Each modality of each item is put into the space
    of an aligning model, in which what belongs together is near. The job's id goes to stdout: `trivium search` takes
    it. The index goes with the job: `trivium delete JOB`.

    Examples:

    ```
    model=$(trivium train posts.tar --method align --watch)
    index=$(trivium index posts.tar --model $model --watch)
    trivium search $index --audio dog.wav --find image
    ```
    """
    options: IndexOptions = only_given(
        model=model,
        shard_size=shard_size,
        priority=priority,
        timeout_seconds=timeout,
        metadata=pairs(metadata, "--metadata") or None,
    )
    here = connection(context)
    job = create(here, lambda client, on_bytes: client.index(source, on_bytes=on_bytes, **options))
    follow(here, job, watch=watch, output=None, as_json=as_json)


def search(
    context: typer.Context,
    index: Index,
    text: Annotated[str | None, typer.Option(metavar="WORDS", help="A text.", rich_help_panel=_QUERY)] = None,
    image: Media = None,
    audio: Media = None,
    like: Annotated[
        str | None, typer.Option(metavar="ID", help="An item of the index.", rich_help_panel=_QUERY)
    ] = None,
    find: Annotated[Modality | None, typer.Option(help="By which modality items are found; by any otherwise.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="How many at most.")] = 10,
    label: Annotated[list[str] | None, typer.Option(help="Only items with one of these labels.")] = None,
    split: Annotated[Split | None, typer.Option(help="Only items of this split.")] = None,
    metadata: Metadata = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every item.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find items by what is like them: a text, a picture, a sound, or several of these together.

    Examples:

    ```
    trivium search $index --audio dog.wav --find image
    trivium search $index --text "a dog on the beach" --label animals --split test
    trivium search $index --like post-17 --json | jq -r .id
    ```
    """
    if all(one is None for one in (text, image, audio, like)):
        raise typer.BadParameter("give one of --text, --image, --audio and --like", param_hint=_QUERY.lower())
    chosen = only_given(label=label or None, split=split, metadata=json_pairs(metadata, "--metadata") or None)
    with connection(context).client() as client:
        found = client.search(
            index, text=text, image=image, audio=audio, id=like, modality=find, limit=limit,
            filter=chosen, exact=exact,
        )  # fmt: skip
    if as_json:
        print_json(*found.data)
    else:
        output().print(results_table(found))


def results_table(found: SearchResults) -> Table:
    """One row an item, the nearest first."""
    table = table_of("item", "score", "by", "label", "what", right=("score",))
    for result in found.data:
        named = {Modality.IMAGE: result.image_ref, Modality.AUDIO: result.audio_ref}.get(result.modality) or result.text
        what = (named or "").replace("\n", " ")
        shown = what if len(what) <= _SHOWN_TEXT else f"{what[:_SHOWN_TEXT]}…"
        table.add_row(result.id, f"{result.score:.3f}", result.modality.value, ", ".join(result.label), shown)
    return table
