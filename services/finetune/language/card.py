"""The model card of a tuned language model: what it learned from, and its answers beside those of the base model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from services.finetune.card import cell, data_section, table
from services.finetune.language.data import Example
from services.finetune.language.dry_run import question_text
from shared.queues import Modality

_NAMES = {
    "accuracy": "accuracy", "precision_macro": "precision (macro)", "recall_macro": "recall (macro)",
    "f1_macro": "F1 (macro)", "no_label": "answers that name no label", "exact_match": "exact match",
    "token_f1": "token F1",
}  # fmt: skip
_SAMPLES, _CHARACTERS = 12, 300


def language_card(
    metrics: Mapping[str, Any], examples: Sequence[Example], base: Sequence[str], tuned: Sequence[str]
) -> str:
    """In Markdown; the answers are those to the test examples."""
    sections = [
        _head(metrics),
        data_section(metrics),
        _reading(metrics["dry_run"]["train"]),
        _scores(metrics),
        _samples(examples, base, tuned),
        _usage(metrics),
        _making(metrics),
    ]
    return "\n\n".join(sections) + "\n"


def _head(metrics: Mapping[str, Any]) -> str:
    name, found = _NAMES[metrics["main_score"]], metrics["intervals"]
    gain = found["gain"]
    return (
        f"# {metrics['language_model']}, tuned\n\n"
        f"Adapter: {metrics['adapter']}. **{name} {cell(found['tuned']['score'])}** on {metrics['evaluated_items']} "
        f"test items (95 % interval {cell(found['tuned']['low'])} to {cell(found['tuned']['high'])}); the base model: "
        f"{cell(found['base']['score'])}. Gain {cell(gain['score'])} ({cell(gain['low'])} to {cell(gain['high'])})."
    )


def _reading(found: Mapping[str, Any]) -> str:
    shown = "\n\n".join(f"````\n{one['rendered']}\n````" for one in found["shown"][:1])
    return (
        f"## What it read\n\n{found['tokens']:,} tokens of training items, {found['answer_tokens']:,} of them answers, "
        f"which alone are learned. {found['cut']['examples']} questions lost their start, "
        f"{found['left_out']['examples']} items were left out because their answer did not fit.\n\n{shown}"
    )


def _scores(metrics: Mapping[str, Any]) -> str:
    models = {"base": "base", "test": "tuned", "without_media": "tuned, without media"}
    there = [name for name in models if name in metrics]
    rows = [
        (words, *(metrics[model][score] for model in there))
        for score, words in _NAMES.items()
        if score in metrics["test"]
    ]
    text = "## Scores on test items\n\n" + table(["score", *(models[name] for name in there)], rows)
    if "classes" in metrics["test"]:
        columns = ["items", "precision", "recall", "f1"]
        of_classes = [(name, *(row[c] for c in columns)) for name, row in metrics["test"]["classes"].items()]
        text += "\n\n" + table(["class", *columns], of_classes)
    return text + "\n\nBoth models were asked the same, and always gave their likeliest words."


def _samples(examples: Sequence[Example], base: Sequence[str], tuned: Sequence[str]) -> str:
    """The first of each right answer, then the second of each, and so on: nobody picked them."""
    met, turns = Counter[str](), []
    for example in examples:
        turns.append(met[example.answer])
        met[example.answer] += 1
    shown = sorted(range(len(examples)), key=turns.__getitem__)[:_SAMPLES]
    rows = [
        tuple(text[:_CHARACTERS] for text in (question_text(examples[i]), examples[i].answer, base[i], tuned[i]))
        for i in shown
    ]
    return "## Samples\n\n" + table(["question", "answer", "base model", "tuned model"], rows)


def _usage(metrics: Mapping[str, Any]) -> str:
    own = metrics["image_encoder"]
    media = ", ".join(f"{m} ({d})" for m, d in metrics["dimensions"].items() if own is None or m != Modality.IMAGE)
    soft = f" Vectors of {media} become soft tokens through `projector.safetensors`." if media else ""
    soft += f" It reads pictures itself, through its own vision tower ({own})." if own else ""
    return (
        "## Use\n\nAsk it by its id, in a `predict` job or as `model` of `/v1/chat/completions`. The adapter is in "
        f"PEFT's layout: `PeftModel.from_pretrained` reads it onto {metrics['language_model']}.{soft}"
    )


def _making(metrics: Mapping[str, Any]) -> str:
    cost = metrics["complexity"]
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    columns = ["epoch", "phase", "training loss", "validation loss"]
    rows = [(e["epoch"], e["model"], e["train_loss"], e["validation_loss"]) for e in metrics["curve"]]
    return (
        f"## How it was made\n\nSeed {metrics['seed']}, processes: {metrics['processes']}, threads of each: "
        f"{metrics['threads']}, on {metrics['device']}, weights in {metrics['dtype']}. "
        f"{cost['trained_parameters']:,} of {cost['parameters']:,} parameters were trained, in "
        f"{cost['training_seconds']:.1f} s, {cost['tokens_per_second']:.0f} tokens a second. {versions}.\n\n"
        f"{table(columns, rows)}"
    )
