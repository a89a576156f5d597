"""The tables of the demo: what came out, who is near whom, and how well labels can be told."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from services.client.demo.explore import FUSED, NEIGHBOURS, FeatureSpace, Look, neighbours
from services.client.rendering import elapsed, rate
from shared.queues import Modality, Stage
from shared.schemas import Job

_SHOWN_ITEMS, _SHOWN_NEIGHBOURS = 5, 3


def features_table(job: Job, space: FeatureSpace) -> Table:
    """One row a column of vectors: its encoder, how many there are, their dimension, and the rate."""
    table = _table("What came out", "vectors", "made by", "how many", "dimension", "took", "items/s")
    for column, rows in space.vectors.items():
        progress = job.stages[Stage.FUSION if column == FUSED else Stage(column)]
        maker = job.request["fusion"]["method"] if column == FUSED else job.request["encoders"][column]
        pace, seconds = rate(progress), elapsed(progress)
        table.add_row(
            column,
            maker,
            f"{int(space.present[column].sum()):,}",
            f"{rows.shape[1]:,}",
            f"{seconds:.1f} s" if seconds is not None else "",
            f"{pace:,.0f}" if pace is not None else "",
        )
    return table


def neighbours_table(space: FeatureSpace) -> Table:
    """For the first complete item of each of a few labels, the nearest others (cosine), by each column of vectors."""
    table = _table("Nearest neighbours (cosine; green: of the same label)")
    table.expand = True
    table.add_column("by", width=6)
    for place in range(_SHOWN_NEIGHBOURS):
        table.add_column(f"{place + 1}", ratio=1, no_wrap=True, overflow="ellipsis")
    for item in _first_of_labels(space):
        table.add_row("", Text(_name(space, item), "bold"), Text(str(space.labels[item]), "dim"))
        for column in (FUSED, *(m.value for m in Modality)):
            nearest = neighbours(space, column, item, _SHOWN_NEIGHBOURS)
            table.add_row(column, *(_neighbour(space, item, other, cosine) for other, cosine in nearest))
        table.add_section()
    return table


def scores_table(look: Look) -> Table:
    """How often the label of a test item is told right, by each column of vectors."""
    table = _table("Labels told from vectors", "vectors", "test items", f"{NEIGHBOURS} nearest", "linear")
    for column, score in look.scores.items():
        style = "bold" if column == FUSED else ""
        row = (column, f"{score.tested:,}", f"{score.neighbours:.1%}", f"{score.linear:.1%}")
        table.add_row(*row, style=style)
    table.add_row("(guessing)", "", f"{look.majority:.1%}", f"{look.majority:.1%}", style="dim")
    return table


def scores_note(weights: Mapping[Modality, float]) -> str:
    """What has to be known to read the scores."""
    given = ", ".join(f"{modality.value} {weight:g}" for modality, weight in weights.items())
    return f"[dim]Each modality on the test items that have it, fused on all. Weights in the fusion: {given}.[/]\n"


def _first_of_labels(space: FeatureSpace) -> list[int]:
    """The first complete item of each label, in order, until there are enough: nobody picked them."""
    first: dict[str, int] = {}
    for item in space.complete():
        first.setdefault(str(space.labels[item]), item)
    return list(first.values())[:_SHOWN_ITEMS]


def _neighbour(space: FeatureSpace, item: int, other: int, cosine: float) -> Text:
    alike = space.labels[item] == space.labels[other]
    return Text.assemble((f"{cosine:.2f} ", "dim"), (_name(space, other), "green" if alike else ""))


def _name(space: FeatureSpace, item: int) -> str:
    """`🍕 pizza`."""
    metadata = space.metadata[item]
    emoji = "".join(chr(int(point.removeprefix("U+"), 16)) for point in metadata["codepoints"].split())
    return f"{emoji} {metadata['name']}"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        numeric = place > 0 and column != "made by"
        table.add_column(column, justify="right" if numeric else "left")
    return table
