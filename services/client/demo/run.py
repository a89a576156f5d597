"""The steps of the demo, from an empty folder to a verdict."""

import json
import signal
import threading
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from services.client.client import Client
from services.client.demo.jobs import succeeded
from services.client.demo.running import Times, data_folder, running_stack, wait_for_interrupt
from services.client.demo.sample import SAMPLE, Sample
from services.client.errors import ClientError
from services.client.rendering import elapsed, rate
from shared.queues import Modality, Stage
from shared.schemas import Job

if TYPE_CHECKING:
    from services.client.demo.explore import FeatureSpace
    from services.client.demo.find import Search
    from services.client.demo.learn import Learned

#: Every modality counts the same in the fused vectors, which need no labels; how much each says is learned later.
FUSION = {"method": "weighted"}


def run_demo(*, data_dir: Path | None, output_dir: Path, keep: bool, as_json: bool) -> None:
    """Runs the demo. Raises ClientError (`demo_failed`) if anything is off.

    The Parquet file and the picture go to `output_dir`, the stack's data to `data_dir` or a temporary folder. With
    `as_json`, what is for people goes to stderr and a line of figures to stdout.
    """
    console = Console(stderr=as_json, highlight=False)
    times = Times()
    output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way to end it stops the stack
    threading.Thread(target=import_module, args=("services.client.demo.picture",), daemon=True).start()
    sample = Sample.read()
    with data_folder(data_dir) as folder:
        with running_stack(folder, console, times) as url, Client(url) as client:
            job, features = _make_features(client, sample, output_dir, console, times)
            space = _look(job, features, console, times)
            learned = _learn(client, job, space, output_dir, console, times)
            _ask(client, learned, space, sample, console, times)
            found = _find(client, job, space, sample, output_dir / "found-by-voice.png", console, times)
            _draw(space, sample, output_dir / "feature-space.png", console, times)
            if keep:
                wait_for_interrupt(url, console)
        problems = find_problems(job, sample, space, learned) + find_search_problems(space, found)
        console.print(f"Stopped. {times}")
        if as_json:
            print(json.dumps(_figures(job, learned, found, times, problems)))
        if problems:
            raise ClientError(f"{'; '.join(problems)}. Data and logs are in {folder}.", code="demo_failed")


def _make_features(
    client: Client, sample: Sample, output_dir: Path, console: Console, times: Times
) -> tuple[Job, Path]:
    """Submits the sample, waits for the job, and downloads what it made."""
    console.print(f"Submitting {SAMPLE.name}: {len(sample.items):,} emoji as picture, words and speech.\n")
    with times.of("features"):
        job = succeeded(client, client.features(SAMPLE, fusion=FUSION), console)
    with times.of("download"):
        return job, client.jobs.results(job.id, output_dir / "features.parquet")


def _look(job: Job, features: Path, console: Console, times: Times) -> "FeatureSpace":
    """Reads the features and prints what they are, and who is near whom."""
    with times.of("look"):
        from services.client.demo import report
        from services.client.demo.explore import read_features

        space = read_features(features)
        console.print(report.features_table(job, space))
        console.print(report.neighbours_table(space))
        console.print(f"The features: [bold]{features}[/]\n")
    return space


def _learn(
    client: Client, features: Job, space: "FeatureSpace", output_dir: Path, console: Console, times: Times
) -> "Learned":
    """Trains a model on the features, and prints how good it is and what it says."""
    console.print("Training a classifier of the emoji's groups; test items take no part in it.\n")
    with times.of("learn"):
        from services.client.demo import report
        from services.client.demo.learn import learn

        learned = learn(client, features, output_dir, console)
        console.print(report.scores_table(learned))
        console.print(*learned.card, sep="\n", end="\n\n", markup=False)
        console.print(report.predictions_table(space, learned), report.PREDICTIONS_NOTE, sep="")
        console.print(f"The model: [bold]{learned.folder}[/]\nIts predictions: [bold]{learned.written}[/]")
    return learned


def _ask(
    client: Client, learned: "Learned", space: "FeatureSpace", sample: Sample, console: Console, times: Times
) -> None:
    """Has the model say at once what an item is that took no part in training."""
    with times.of("predict"):
        from services.client.demo import report
        from services.client.demo.find import predict_at_once

        [item] = space.examples(1, split="test")
        id = space.ids[item]
        raw = next(one for one in sample.items if one["id"] == id)
        said, seconds = predict_at_once(client, learned.id, raw, sample.pictures[id], sample.sounds[id])
        console.print(report.prediction_line(space, item, said, seconds), end="\n\n")


def _find(
    client: Client, features: Job, space: "FeatureSpace", sample: Sample, path: Path, console: Console, times: Times
) -> dict[str, "Search"]:
    """Makes the features searchable, and says how well pictures are found by voice and by words."""
    console.print("Aligning the modalities in one space, to search pictures by voice.\n")
    with times.of("align"):
        from services.client.demo import find, report

        index = find.make_index(client, features, console)
    with times.of("search"):
        by_voice = find.search_pictures(client, index, space, Modality.AUDIO, sample.sounds)
        by_words = find.search_pictures(client, index, space, Modality.TEXT, sample.texts)
        find.draw_sheet(space, by_voice, sample.pictures, path)
        console.print(report.search_table(by_voice, by_words), report.SEARCH_NOTE, sep="")
        console.print(f"Pictures found by the first voices of six groups: [bold]{path}[/]\n")
    return {"voice": by_voice, "words": by_words}


def _draw(space: "FeatureSpace", sample: Sample, path: Path, console: Console, times: Times) -> None:
    with times.of("picture"):
        from services.client.demo.picture import draw

        draw(space, sample.pictures, path, "Emoji by their fused text, image and audio features")
    console.print(f"A picture of them: [bold]{path}[/]\n")


def find_problems(job: Job, sample: Sample, space: "FeatureSpace", learned: "Learned") -> list[str]:
    """Everything that is not as it must be, in words; empty when all is well."""
    expected = {item["id"] for item in sample.items}
    problems = []
    if job.items.succeeded != len(expected):
        problems.append(f"{len(expected) - job.items.succeeded} of {len(expected)} items did not succeed")
    if len(space.ids) != len(expected) or set(space.ids) != expected:
        problems.append(f"the features are of {len(space.ids)} items, not of the {len(expected)} submitted")
    for modality in Modality:
        found, wanted = int(space.present[modality.value].sum()), sample.count(modality)
        if found != wanted:
            problems.append(f"{wanted} items have {modality.value}, but {found} have its vector")
    if not space.is_finite:
        problems.append("some vectors are not finite")
    if learned.predictions.keys() != expected:
        problems.append(f"there are predictions of {len(learned.predictions)} items, not of the {len(expected)}")
    if learned.scores["fused"]["low"] <= space.majority:
        problems.append("the model tells labels no better than guessing")
    return problems


def find_search_problems(space: "FeatureSpace", found: Mapping[str, "Search"]) -> list[str]:
    """What is not as it must be with the search, in words. That voices find much is not expected: they hardly tell."""
    lists = [(search.pictures, ids) for search in found.values() for ids in search.results.values()]
    test = {id for id, split in zip(space.ids, space.splits, strict=True) if split == "test"}
    problems = []
    if any(len(set(ids)) < min(10, pictures) for pictures, ids in lists):
        problems.append("some searches found too few pictures")
    if not all(test.issuperset(ids) for _, ids in lists):
        problems.append("a search for test items found others")
    if found["words"].own.found <= 2 * found["words"].own.by_chance:
        problems.append("pictures are found by words hardly better than by guessing")
    return problems


def _figures(
    job: Job, learned: "Learned", found: Mapping[str, "Search"], times: Times, problems: list[str]
) -> dict[str, Any]:
    """What `--json` prints: times in seconds, items per second, scores of the model on test items."""
    return {
        "ok": not problems,
        "problems": problems,
        "items": job.items.model_dump(),
        "seconds": {**times.steps, "total": times.total},
        "stages": {
            stage.value: {
                "items": progress.items_done,
                "seconds": elapsed(progress),
                "items_per_second": rate(progress),
            }
            for stage, progress in job.stages.items()
            if stage is not Stage.PLAN
        },
        "scores": learned.scores,
        "fusions": learned.model.metrics["tried"],
        "pictures_found": {
            by: {
                "searches": len(search.results),
                "pictures": search.pictures,
                "own_in_first_ten": asdict(search.own),
                "group_in_first_ten": asdict(search.group),
                "milliseconds": round(search.milliseconds, 1),
            }
            for by, search in found.items()
        },
    }
