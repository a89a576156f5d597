"""Pictures found by voice and by words: a model that aligns the modalities, an index in its space, how well it does."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from services.client.client import Client
from services.client.demo.explore import FeatureSpace
from services.client.demo.jobs import succeeded
from services.client.demo.picture import open_picture
from services.client.demo.sample import data_uri
from shared.fine_tuning import Method, Preset
from shared.predictions import Prediction
from shared.queues import Modality
from shared.schemas import Job

#: So many pictures are looked at for each sound, and so many sounds are shown, the first of as many groups.
FIRST, SHOWN = 10, 6
#: Searches at the same time.
_CALLERS = 4
#: Pixels of the contact sheet.
_CELL, _GAP, _NAMES = 96, 8, 300


@dataclass(frozen=True)
class Hits:
    """How often something is found among the first ten, and how often it would be by chance."""

    found: float
    by_chance: float


@dataclass(frozen=True)
class Search:
    """What came of searching test pictures by one modality of test items, none of which the model has seen.

    `own` is the picture of the item itself, `group` any picture of its group (as a share of the ten). `results` are the
    ids of the pictures found by each item.
    """

    pictures: int
    own: Hits
    group: Hits
    milliseconds: float
    results: Mapping[str, Sequence[str]]


def make_index(client: Client, features: Job, console: Console) -> str:
    """Trains a model that aligns the modalities, and indexes the feature set in its space. Returns the index's job."""
    aligned = succeeded(client, client.fine_tune(features.id, method=Method.ALIGN, preset=Preset.GOOD), console)
    return succeeded(client, client.index(features.id, model=aligned.models[0]), console).id


def search_pictures(
    client: Client, index: str, space: FeatureSpace, by: Modality, contents: Mapping[str, Any]
) -> Search:
    """Searches the test items' pictures by what each test item that has both holds of another modality."""
    seen = (space.splits == "test") & space.present[Modality.IMAGE]
    asked = np.flatnonzero(seen & space.present[by]).tolist()
    labels = dict(zip(space.ids, space.labels.tolist(), strict=True))

    def ask(item: int) -> tuple[list[str], float]:
        query: dict[str, Any] = {by.value: contents[space.ids[item]]}
        began = time.perf_counter()
        found = client.search(
            index,
            **query,
            modality=Modality.IMAGE,
            limit=FIRST,
            filter={"split": "test"},
            timeout_seconds=60,
        )
        return [one.id for one in found.data], time.perf_counter() - began

    with ThreadPoolExecutor(_CALLERS) as callers:
        answers = list(callers.map(ask, asked))
    results = {space.ids[item]: ids for item, (ids, _) in zip(asked, answers, strict=True)}
    pictures = int(seen.sum())
    group = [np.mean([labels[one] == labels[id] for one in ids]) for id, ids in results.items()]
    shares = [(space.labels[seen] == labels[id]).mean() for id in results]
    return Search(
        pictures=pictures,
        own=Hits(float(np.mean([id in ids for id, ids in results.items()])), min(FIRST / pictures, 1.0)),
        group=Hits(float(np.mean(group)), float(np.mean(shares))),
        milliseconds=float(np.median([seconds for _, seconds in answers])) * 1000,
        results=results,
    )


def predict_at_once(
    client: Client, model: str, item: Mapping[str, str], picture: bytes, sound: bytes
) -> tuple[Prediction, float]:
    """What the model says of an item that is sent with all that it has, and in how many seconds."""
    whole = {"id": item["id"], "text": item["text"], "image": data_uri(picture), "audio": data_uri(sound)}
    began = time.perf_counter()
    said = client.predictions.create(model=model, items=[whole], contributions=True, timeout_seconds=60)
    return said.data[0], time.perf_counter() - began


def draw_sheet(space: FeatureSpace, search: Search, pictures: Mapping[str, bytes], path: Path) -> None:
    """Writes a contact sheet as PNG: for each of a few items that are heard, the pictures found, the nearest first.

    A green frame is a picture of the same group, a black one the item's own.
    """
    places = {id: place for place, id in enumerate(space.ids)}
    shown = [i for i in space.examples(SHOWN, split="test") if space.ids[i] in search.results]
    step = _CELL + _GAP
    sheet = Image.new("RGB", (_NAMES + FIRST * step + _GAP, len(shown) * step + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for row, item in enumerate(shown):
        y = _GAP + row * step
        pen.text((_GAP, y + _CELL / 2), str(space.metadata[item]["name"])[:28], "black", font, anchor="lm")
        for column, id in enumerate(search.results[space.ids[item]]):
            x = _NAMES + column * step
            sheet.paste(open_picture(pictures[id], _CELL), (x, y))
            if space.labels[places[id]] == space.labels[item]:
                frame = "black" if id == space.ids[item] else "#117733"
                pen.rectangle((x - 3, y - 3, x + _CELL + 2, y + _CELL + 2), outline=frame, width=3)
    sheet.save(path)
