"""The tables of the instruction demo: what the model answers before and after, and how often that is right."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from shared.queues import Modality

if TYPE_CHECKING:
    from services.client.demo.instruct import Tuned

_MODELS = {"base": "before", "tuned": "tuned", "without_media": "tuned, without picture and voice"}

#: What has to be known to read the scores.
SCORES_NOTE = (
    "[dim]Right: the whole answer, word for word, with its 95 % interval. Without picture and voice, the tuned model "
    "can only guess what is frequent: the rest of its score is what it sees and hears.[/]\n"
)


def answers_table(tuned: "Tuned", names: Mapping[str, str]) -> Table:
    """The first test item of each right answer: what was to be answered, and what was."""
    table = Table(title="What it answers about test items", box=box.SIMPLE_HEAD, title_justify="left", expand=True)
    for column in ("emoji", "right would be", "it said before", "it says now"):
        table.add_column(column, ratio=1, overflow="ellipsis", no_wrap=True)
    first = {one.wanted: one for one in reversed(tuned.answers)}
    for _, one in sorted(first.items()):
        said = (Text(said or "(nothing)", "green" if said == one.wanted else "red") for said in (one.base, one.tuned))
        table.add_row(names[one.id], one.wanted, *said)
    return table


def scores_table(tuned: "Tuned", parts: Mapping[str, Mapping[Modality, float]]) -> Table:
    """How often answers are right: as a whole, in what the picture decides, and in what the voice decides."""
    table = Table(title="How often it is right", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("model", "right", "what is shown", "who speaks"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for key, name in _MODELS.items():
        score = tuned.scores[key]
        shares = [f"{parts[key][m]:.0%}" for m in (Modality.IMAGE, Modality.AUDIO)] if key in parts else ["", ""]
        table.add_row(name, f"{score['score']:.0%} ({score['low']:.0%} to {score['high']:.0%})", *shares)
    return table


def chat_line(name: str, wanted: str, said: str, seconds: float) -> Text:
    """What the model said in a chat."""
    line = Text(f"In a chat, asked about {name}, with its picture and voice: ")
    line.append(said or "(nothing)", "bold green" if said == wanted else "bold red")
    return line.append(f" ({seconds:.1f} s).")
