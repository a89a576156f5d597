"""What presets try, and what a search adds to it."""

import json

import numpy as np
import pytest
import torch

from services.finetune.candidates import BEST_SEEDS, candidates, suited, with_seeds
from services.finetune.library import Bench
from services.finetune.objectives import Supervised, make_batch
from services.finetune.search import TRIALS, SettingsSearch
from services.finetune.settings import Settings
from shared.fine_tuning import Preset, Search, Training
from shared.ml.repeatable import repeatable
from shared.queues import Modality
from shared.worker.progress import Silence
from tests.unit.finetune_data import Outside, Stopped, blobs, request

ALL = list(Modality)
CPU = torch.device("cpu")


def test_presets_try_more_and_more() -> None:
    """One network; several fusions; these with several seeds. Of one modality there is nothing to fuse."""
    assert [c.name for c in candidates(request(preset="fast"), 500, ALL)] == ["concat"]
    good = candidates(request(preset="good"), 500, ALL)
    assert len({c.fusion for c in good}) >= 4
    best = with_seeds(candidates(request(preset="best"), 500, ALL), Preset.BEST)
    assert len(best) == BEST_SEEDS * len(good)
    assert len({c.name for c in best}) == len(best)
    assert len({c.seed for c in best}) == BEST_SEEDS
    assert {c.fusion for c in candidates(request(preset="good"), 500, ALL[:1])} == {"concat"}


def test_a_fusion_that_is_given_is_the_only_one() -> None:
    """With seeds in the preset `best`."""
    wanted = request(preset="best", fusion={"method": "low_rank", "parameters": {"rank": 3}})
    tried = with_seeds(candidates(wanted, 500, ALL), Preset.BEST)
    assert {(c.fusion, c.parameters["rank"]) for c in tried} == {("low_rank", 3)}
    assert len(tried) == BEST_SEEDS


def test_settings_suit_the_data_and_the_optimizer() -> None:
    """More items: less regularisation, larger batches. What is given always wins."""
    few, many = (suited(Settings(weight_decay=2.0), Training(), n) for n in (500, 50_000))
    assert few.weight_decay > 10 * many.weight_decay
    assert few.batch_size < many.batch_size <= 1024
    assert few.dropout > many.dropout
    sgd = suited(Settings(), Training(optimizer="sgd"), 500)
    assert sgd.learning_rate > few.learning_rate
    given = Training(weight_decay=0.5, batch_size=7, learning_rate=0.1, optimizer="sgd", dropout=0.0)
    found = suited(Settings(), given, 50_000)
    assert (found.weight_decay, found.batch_size, found.learning_rate, found.dropout) == (0.5, 7, 0.1, 0.0)


def search_on(outside: Outside | Silence, trials: int, seconds: float | None = None) -> SettingsSearch:
    data = blobs(150, noise=2.0)
    answers = np.array([int(labels[0][-1]) for labels in data.labels])
    bench = Bench.of(
        "bench", make_batch(data, np.arange(100), answers, CPU), make_batch(data, np.arange(100, 150), answers, CPU),
        lambda: Supervised("cross_entropy"), 3, outside,
    )  # fmt: skip
    training = Training(epochs=8, batch_size=50, head=0)
    tried = candidates(request(training=training.model_dump()), 100, list(data.vectors))
    return SettingsSearch(bench, tried, Search(trials=trials, seconds=seconds), training)


@pytest.mark.usefixtures("one_thread")
def test_a_search_finds_better_settings() -> None:
    """It begins with the preset's own, so that it can only gain; what was given stays; weak trials are cut short."""
    with repeatable(CPU, 0):
        search = search_on(Silence(), 15)
        search.run()
    [best, *_] = search.best(3)
    own = search.trials[0]
    losses = [trial["loss"] for trial in search.trials if trial["loss"] is not None]
    assert own["loss"] > min(losses)
    assert best.settings.as_json() in [t["settings"] for t in search.trials if t["loss"] == min(losses)]
    assert {trial["settings"]["head"] for trial in search.trials} == {0}
    assert {trial["settings"]["epochs"] for trial in search.trials} == {8}
    assert len({trial["settings"]["learning_rate"] for trial in search.trials}) == 15
    assert any(trial["loss"] is None and len(trial["losses"]) < 8 for trial in search.trials)


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_search_goes_on_as_it_would_have() -> None:
    """The sampler asks for the same trials, and none is made twice."""
    with repeatable(CPU, 0):
        whole = search_on(Silence(), 14)
        whole.run()
        outside = Outside(stop_at=190)
        with pytest.raises(Stopped):
            search_on(outside, 14).run()
        done = len(json.loads(outside.saved[TRIALS])["trials"])
        resumed = Outside(saved=outside.saved)
        again = search_on(resumed, 14)
        again.run()
    assert 2 < done < 14
    assert again.trials == whole.trials
    assert [kind for kind, _ in resumed.events].count("trial") == 14 - done


def test_a_search_whose_time_is_over_begins_no_trial() -> None:
    """But the first."""
    search = search_on(Silence(), 10, seconds=1e-9)
    search.run()
    assert len(search.trials) == 1
