"""`trivium demo-instruct`: a language model learns to answer a question about a picture and a voice.

The model that ships in packages has never seen a picture or heard a sound. From 200 questions with answers it learns
to read both through projectors; what came of it is shown on items that took no part in that.
"""

import json
import random
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from services.client.client import Client
from services.client.demo import instruct_report
from services.client.demo.jobs import succeeded
from services.client.demo.running import Times, data_folder, running_stack, wait_for_interrupt
from services.client.demo.sample import Sample, data_uri
from services.client.errors import ClientError
from shared.language_models import DEFAULT_LANGUAGE_MODEL
from shared.queues import Modality
from shared.schemas import FineTuned

QUESTION = "Picture: {image}\nVoice: {audio}\nWhat does the picture show, and who speaks?"
#: What a picture of a group is said to show: those groups that one can tell by looking.
SHOWN = {
    "Animals & Nature": "nature",
    "Flags": "flag",
    "Food & Drink": "food",
    "Smileys & Emotion": "emotion",
}
#: Who speaks in espeak's variants of voices, by their first letter.
SPEAKERS = {"f": "woman", "m": "man"}
#: Items that take part in training; of the split `test`, all.
LEARNED = {"train": 160, "validation": 40}
#: `speaker` is trained to tell voices apart.
ENCODERS = {"text": None, "image": "mobilenet_v2", "audio": "speaker"}
#: A higher rate than usual, since there are few steps.
TRAINING = {
    "epochs": 3,
    "projector_epochs": 4,
    "learning_rate": 1e-3,
    "projector_learning_rate": 2e-3,
    "batch_size": 8,
    "precision": "fp32",
}


@dataclass(frozen=True)
class Answered:
    """A test item: what it shows and who speaks, as the models were to say it, and what they said."""

    id: str
    wanted: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Tuned:
    """A tuned model, the folder with its files, and all test items with its answers."""

    id: str
    model: FineTuned
    folder: Path
    answers: list[Answered]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Share of answers that are exactly right: of the model before and after, and of the latter without media."""
        scores: dict[str, dict[str, float]] = self.model.metrics["intervals"]
        return scores


def run_instruct_demo(*, data_dir: Path | None, output_dir: Path, keep: bool, as_json: bool) -> None:
    """Runs the demo. Raises ClientError (`demo_failed`) if anything is off.

    The questions and the model go to `output_dir`, the stack's data to `data_dir` or a temporary folder. With
    `as_json`, what is for people goes to stderr and a line of figures to stdout.
    """
    console = Console(stderr=as_json, highlight=False)
    times = Times()
    output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way to end it stops the stack
    sample = Sample.read()
    items = questions(sample)
    archive = sample.write(items, output_dir / "questions.tar")
    with data_folder(data_dir) as folder:
        with running_stack(folder, console, times, {"text": 0, "generate": 1}) as url, Client(url) as client:
            tuned = _tune(client, archive, items, sample, output_dir, console, times)
            said = _chat(client, tuned, sample, console, times)
            if keep:
                wait_for_interrupt(url, console)
        problems = find_problems(tuned, said)
        console.print(f"Stopped. {times}")
        if as_json:
            print(json.dumps(_figures(tuned, said, times, problems)))
        if problems:
            raise ClientError(f"{'; '.join(problems)}. Data and logs are in {folder}.", code="demo_failed")


def questions(sample: Sample) -> list[dict[str, Any]]:
    """Items of the sample that have both a picture and a voice, with the answer as `target`.

    So many of each split as `LEARNED` says, drawn with a seed.
    """
    fit = [i for i in sample.items if {"image", "audio"} <= i.keys() and i["label"] in SHOWN]
    chosen: list[dict[str, Any]] = []
    for split in ("train", "validation", "test"):
        among = [item for item in fit if item["split"] == split]
        chosen += random.Random(0).sample(among, min(LEARNED.get(split, len(among)), len(among)))
    return [
        {"id": i["id"], "image": i["image"], "audio": i["audio"], "target": _answer(i), "split": i["split"]}
        for i in chosen
    ]


def _answer(item: Mapping[str, Any]) -> str:
    variant = item["metadata"]["voice"].partition("+")[2]
    return f"{SHOWN[item['label']]}, {SPEAKERS[variant[0]]}"


def _tune(
    client: Client,
    archive: Path,
    items: Sequence[Mapping[str, Any]],
    sample: Sample,
    output_dir: Path,
    console: Console,
    times: Times,
) -> Tuned:
    """Tunes the model, downloads it, and prints what it answers to test items beside what it answered before."""
    counts = {split: sum(item["split"] == split for item in items) for split in ("train", "validation", "test")}
    console.print(
        f"Tuning {DEFAULT_LANGUAGE_MODEL}, which has never seen a picture or heard a voice: {counts['train']} emoji "
        f"to learn from, {counts['validation']} to know when to stop, {counts['test']} to be asked about.\n"
    )
    with times.of("tune"):
        job = client.fine_tune(
            archive,
            method="instruction",
            language_model=DEFAULT_LANGUAGE_MODEL,
            prompt={"template": QUESTION},
            encoders=ENCODERS,
            training=TRAINING,
        )
        [id] = succeeded(client, job, console).models
        model = client.models.get(id).fine_tuned
        assert model is not None
        tuned = Tuned(id, model, client.models.download(id, output_dir / id), read_answers(output_dir / id))
    console.print(instruct_report.answers_table(tuned, sample.names))
    console.print(instruct_report.scores_table(tuned, halves_right(tuned)), instruct_report.SCORES_NOTE, sep="")
    console.print(f"The model: [bold]{tuned.folder}[/]\n")
    return tuned


def read_answers(folder: Path) -> list[Answered]:
    """What the files of a tuned model say of its test items."""
    lines = map(
        json.loads, (folder / "test_items.jsonl").read_bytes().splitlines()
    )  # in words there are other line ends
    return [Answered(line["id"], line["answer"], line["base"], line["tuned"]) for line in lines]


def _chat(client: Client, tuned: Tuned, sample: Sample, console: Console, times: Times) -> str:
    """Asks the tuned model in a chat, with picture and voice of the first test item."""
    asked = tuned.answers[0]
    with times.of("chat"):
        began = time.perf_counter()
        answer = client.chat.create(
            model=tuned.id,
            messages=[{"role": "user", "content": content(asked.id, sample)}],
            max_completion_tokens=24,
            temperature=0,
            stop="\n",
            timeout_seconds=60,
        )
        said = (answer.choices[0].message.content or "").strip()
        seconds = time.perf_counter() - began
    console.print(instruct_report.chat_line(sample.names[asked.id], asked.wanted, said, seconds), end="\n\n")
    return said


def content(id: str, sample: Sample) -> list[dict[str, Any]]:
    """The question about an item in OpenAI's form: words, its picture, and its voice."""
    media = {
        "{image}": {"type": "image_url", "image_url": {"url": data_uri(sample.pictures[id])}},
        "{audio}": {"type": "input_audio", "input_audio": {"data": data_uri(sample.sounds[id])}},
    }
    pieces = re.split(r"(\{image\}|\{audio\})", QUESTION)
    return [media.get(piece) or {"type": "text", "text": piece} for piece in pieces if piece]


def find_problems(tuned: Tuned, said: str) -> list[str]:
    """Everything that is not as it must be, in words; empty when all is well."""
    gain, blind = tuned.scores["gain"], tuned.scores["without_media"]
    problems = []
    if gain["low"] <= 0:
        problems.append("the tuned model answers no better than the base model")
    if blind["score"] >= tuned.scores["tuned"]["low"]:
        problems.append("the tuned model answers as well without pictures and sounds")
    if said != tuned.answers[0].tuned:
        problems.append(f"in a chat it says {said!r}, in its evaluation it said {tuned.answers[0].tuned!r}")
    return problems


def _figures(tuned: Tuned, said: str, times: Times, problems: list[str]) -> dict[str, Any]:
    """What `--json` prints."""
    metrics = tuned.model.metrics
    return {
        "ok": not problems,
        "problems": problems,
        "seconds": {**times.steps, "total": times.total},
        "items": metrics["items"],
        "scores": tuned.scores,
        "halves_right": halves_right(tuned),
        "training_seconds": metrics["complexity"]["training_seconds"],
        "tokens_per_second": metrics["complexity"]["tokens_per_second"],
        "chat": said,
    }


def halves_right(tuned: Tuned) -> dict[str, dict[Modality, float]]:
    """How often the half of the answer that the picture decides is right, and that which the voice decides.

    Of the models `base` and `tuned`.
    """
    return {
        "base": _halves(tuned, [one.base for one in tuned.answers]),
        "tuned": _halves(tuned, [one.tuned for one in tuned.answers]),
    }


def _halves(tuned: Tuned, said: Sequence[str]) -> dict[Modality, float]:
    pairs = [(one.wanted.split(", "), [*words.split(", "), ""]) for one, words in zip(tuned.answers, said, strict=True)]
    return {
        modality: sum(wanted[place] == words[place] for wanted, words in pairs) / len(pairs)
        for place, modality in enumerate((Modality.IMAGE, Modality.AUDIO))
    }
