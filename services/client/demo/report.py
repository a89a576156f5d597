"""The tables of the demo: what came out, who is near whom, and what the model says."""

from rich import box
from rich.table import Table
from rich.text import Text

from services.client import model_tables
from services.client.demo.explore import FUSED, FeatureSpace, neighbours
from services.client.demo.find import FIRST, Search
from services.client.demo.learn import Learned
from services.client.rendering import elapsed, rate
from shared.predictions import Prediction
from shared.queues import Modality, Stage
from shared.schemas import Job

_SHOWN_ITEMS, _SHOWN_NEIGHBOURS, _SHOWN_PREDICTIONS = 4, 3, 4

#: What has to be known to read the predictions.
PREDICTIONS_NOTE = (
    "[dim]The first complete test item of each of four groups. Sure: how probable the model finds what it says; then "
    "how much each modality moved that (Shapley values).[/]\n"
)

#: What has to be known to read what was found.
SEARCH_NOTE = (
    "[dim]Its own picture: how often it is among the ten; of its group: how many of the ten are. The voices' encoder "
    "(mfcc-stats) hears how something is said, hardly what.[/]\n"
)


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
    for item in space.examples(_SHOWN_ITEMS):
        table.add_row("", Text(_name(space, item), "bold"), Text(str(space.labels[item]), "dim"))
        for column in (FUSED, *(m.value for m in Modality)):
            nearest = neighbours(space, column, item, _SHOWN_NEIGHBOURS)
            table.add_row(column, *(_neighbour(space, item, other, cosine) for other, cosine in nearest))
        table.add_section()
    return table


def scores_table(learned: Learned) -> Table:
    """How well each modality alone, each fusion and the one that was taken do on the test items."""
    title = "Each modality alone, each fusion, and the one that validation items chose: on test items"
    return _titled(model_tables.scores_table(learned.model), title)


def predictions_table(space: FeatureSpace, learned: Learned) -> Table:
    """What the model says of the first complete test item of each of a few labels."""
    modalities = [m.value for m in Modality]
    table = _table("What the model says of test items", "item", "is", "says", "sure", *modalities)
    for item in space.examples(_SHOWN_PREDICTIONS, split="test"):
        said, label = learned.predictions[space.ids[item]], str(space.labels[item])
        style = "green" if said.label == label else "red"
        moved = (f"{said.contributions[modality]:+.2f}" for modality in modalities)
        table.add_row(_name(space, item), label, Text(said.label, style), f"{said.probability:.0%}", *moved)
    return table


def prediction_line(space: FeatureSpace, item: int, said: Prediction, seconds: float) -> Text:
    """What the model said of an item at once."""
    [label] = said.prediction if isinstance(said.prediction, list) else [""]
    style = "green" if label == space.labels[item] else "red"
    sure = f" ({said.probability:.0%} sure, after {seconds * 1000:.0f} ms); it is {space.labels[item]}."
    return Text.assemble("Asked at once what ", (_name(space, item), "bold"), " is, it says ", (label, style), sure)


def search_table(by_voice: Search, by_words: Search) -> Table:
    """How often pictures are found, the right one and those of the right group, beside chance."""
    title = f"Test pictures found by test items' voices and words: the first {FIRST} of {by_voice.pictures}"
    table = _table(title, "by", "searches", "its own picture", "by chance", "of its group", "by chance", "ms")
    for name, search in (("voice", by_voice), ("words", by_words)):
        shares = (search.own.found, search.own.by_chance, search.group.found, search.group.by_chance)
        table.add_row(name, f"{len(search.results)}", *(f"{x:.0%}" for x in shares), f"{search.milliseconds:.0f}")
    return table


def _neighbour(space: FeatureSpace, item: int, other: int, cosine: float) -> Text:
    alike = space.labels[item] == space.labels[other]
    return Text.assemble((f"{cosine:.2f} ", "dim"), (_name(space, other), "green" if alike else ""))


def _name(space: FeatureSpace, item: int) -> str:
    """`🍕 pizza`."""
    metadata = space.metadata[item]
    emoji = "".join(chr(int(point.removeprefix("U+"), 16)) for point in metadata["codepoints"].split())
    return f"{emoji} {metadata['name']}"


def _table(title: str, *columns: str) -> Table:
    table = _titled(Table(box=box.SIMPLE_HEAD), title)
    for place, column in enumerate(columns):
        numeric = place > 0 and column not in {"made by", "is", "says"}
        table.add_column(column, justify="right" if numeric else "left")
    return table


def _titled(table: Table, title: str) -> Table:
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    return table
