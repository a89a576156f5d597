"""Training one network: losses, schedules, early stopping, and that a stopped run goes on as if it had not been."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from services.finetune.candidates import Candidate
from services.finetune.library import Bench
from services.finetune.objectives import Batch, Contrastive, Supervised, class_weights, make_batch
from services.finetune.problem import Problem
from services.finetune.settings import Settings
from services.finetune.training import rate_factor
from shared.errors import JobError
from shared.fine_tuning import Schedule
from shared.ml.repeatable import derived_seed, repeatable
from shared.ml.trained import Task
from shared.queues import Modality
from shared.schemas import FusionMethod
from shared.worker.progress import Silence
from tests.unit.finetune_data import Outside, Stopped, blobs

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


class Fixed(torch.nn.Module):
    """A network that says the same whatever it sees."""

    def __init__(self, said: list[list[float]]):
        super().__init__()
        self.said = torch.nn.Parameter(torch.tensor(said))

    def forward(self, vectors: object, mask: object) -> torch.Tensor:
        return self.said


def mean_loss(objective: Supervised, said: list[list[float]], answers: torch.Tensor) -> torch.Tensor:
    total, weight = objective(Fixed(said), Batch({}, {}, answers))
    return total / weight


def test_the_squared_error_is_halved() -> None:
    """Σ(y−ŷ)²/2N: the gradient by each prediction is its error over N."""
    network = Fixed([[1.0], [4.0]])
    total, weight = Supervised("mse")(network, Batch({}, {}, torch.tensor([2.0, 2.0])))
    assert (total / weight).item() == pytest.approx((1 + 4) / 4)
    (total / weight).backward()
    assert network.said.grad is not None
    assert network.said.grad[:, 0].tolist() == pytest.approx([-0.5, 1.0])


def test_cross_entropy_is_weighted_by_class() -> None:
    """The mean over weights, as in the loss that chooses."""
    loss = mean_loss(
        Supervised("cross_entropy", torch.tensor([1.0, 3.0])), [[0.0, 0.0], [0.0, math.log(3)]], torch.tensor([0, 1])
    )
    assert loss.item() == pytest.approx((math.log(2) - 3 * math.log(3 / 4)) / 4)


@pytest.mark.parametrize("answers", [torch.tensor([0]), torch.tensor([[1.0, 0.0]])])
def test_bce_is_the_mean_over_classes(answers: torch.Tensor) -> None:
    """Of single labels it is one against the rest."""
    loss = mean_loss(Supervised("bce"), [[0.0, math.log(3)]], answers)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_balanced_weights() -> None:
    """All classes count the same; where there are several labels, applying counts as much as not applying."""
    rows = np.arange(4)
    single = Problem(Task.SINGLE_LABEL, np.array([0, 0, 0, 1]), ["a", "b"], 2)
    np.testing.assert_allclose(class_weights("balanced", single, rows), [4 / 6, 4 / 2])
    several = Problem(Task.MULTI_LABEL, np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float64), ["a", "b"], 2)
    np.testing.assert_allclose(class_weights("balanced", several, rows), [1 / 3, 3])
    np.testing.assert_allclose(class_weights({"b": 5.0}, single, rows), [1, 5])
    with pytest.raises(JobError, match="'c'"):
        class_weights({"c": 5.0}, single, rows)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_the_rate_rises_then_falls(schedule: Schedule) -> None:
    """To its full height in the warm-up; linear and cosine end at nothing."""
    settings = Settings(schedule=schedule, warmup=0.1)
    factors = [rate_factor(step, 100, settings) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1
    if schedule is Schedule.CONSTANT:
        assert set(factors[10:]) == {1}
    else:
        assert all(a > b for a, b in pairwise(factors[10:]))
        assert factors[-1] < 0.02
        assert rate_factor(55, 100, settings) == pytest.approx(0.5)


def bench(outside: Outside | Silence, objective: type = Supervised) -> Bench:
    """Three classes in text and image."""
    data = blobs(120, noise=2.0)
    answers = np.array([int(labels[0][-1]) for labels in data.labels])
    train, validation = np.arange(80), np.arange(80, 120)
    return Bench.of(
        "bench",
        make_batch(data, train, answers, CPU),
        make_batch(data, validation, answers, CPU),
        (lambda: Supervised("cross_entropy")) if objective is Supervised else objective,
        3 if objective is Supervised else None,
        outside,
    )


SETTINGS = Settings(epochs=12, batch_size=20, hidden=8, learning_rate=0.02, patience=4)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("stop_at", [3, 20, 41, 59])
def test_a_stopped_training_goes_on_as_if_never_stopped(optimizer: str, stop_at: int) -> None:
    """Stopped at any batch and begun anew from its checkpoint, it ends with the same weights, bit by bit."""
    settings = SETTINGS.changed(optimizer=optimizer)
    candidate = Candidate("gated", FusionMethod.GATED, settings, {"dimension": 8})
    with repeatable(CPU, 0):
        whole = bench(Silence()).fit(candidate).fit
        outside = Outside(stop_at)
        with pytest.raises(Stopped):
            bench(outside).fit(candidate)
        resumed = bench(Outside(saved=outside.saved)).fit(candidate).fit
    assert (resumed.epoch, resumed.loss, resumed.history) == (whole.epoch, whole.loss, whole.history)
    assert resumed.state.keys() == whole.state.keys()
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in whole.state.items())


def test_what_the_loss_learns_is_in_the_checkpoint() -> None:
    """The temperature of InfoNCE is trained too."""
    candidate = Candidate("align", FusionMethod.ALIGN, SETTINGS, {"dimension": 4})
    with repeatable(CPU, 0):
        whole = bench(Silence(), Contrastive).fit(candidate).fit
        outside = Outside(30)
        with pytest.raises(Stopped):
            bench(outside, Contrastive).fit(candidate)
        assert bench(Outside(saved=outside.saved), Contrastive).fit(candidate).fit.history == whole.history


def test_the_best_epoch_is_kept() -> None:
    """Training ends when nothing gets better, and the weights are those of the epoch with the lowest loss."""
    settings = SETTINGS.changed(epochs=200, learning_rate=0.05, weight_decay=0.0, dropout=0.0)
    with repeatable(CPU, 0):
        network = bench(Silence()).fit(Candidate("concat", FusionMethod.CONCAT, settings))
    fit = network.fit
    losses = [entry["validation_loss"] for entry in fit.history]
    assert len(losses) == fit.epoch + settings.patience < 200
    assert fit.loss == min(losses) == losses[fit.epoch - 1]
    from shared.ml.multimodal import MultimodalModel

    model = MultimodalModel(network.config)
    model.load_state_dict(dict(fit.state))
    data = blobs(120, noise=2.0)
    answers = np.array([int(labels[0][-1]) for labels in data.labels])
    total, weight = Supervised("cross_entropy")(model.eval(), make_batch(data, np.arange(80, 120), answers, CPU))
    assert (total / weight).item() == pytest.approx(fit.loss, rel=1e-5)


def test_what_diverges_is_left_out() -> None:
    """And if all does, the job says what to change."""
    wild = SETTINGS.changed(optimizer="sgd", learning_rate=1e30, gradient_clip=1e30)
    sound = Candidate("sound", FusionMethod.CONCAT, SETTINGS)
    with repeatable(CPU, 0):
        networks = bench(Silence()).fit_all([Candidate("wild", FusionMethod.CONCAT, wild), sound])
        assert [network.candidate.name for network in networks] == ["sound"]
        with pytest.raises(JobError) as caught:
            bench(Silence()).fit_all([Candidate("wild", FusionMethod.CONCAT, wild)])
    assert caught.value.error_code == "training_diverged"


def test_seeds_and_settings_of_torch_stay_as_they_were() -> None:
    """Training shares its process with others."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()

    def stopped() -> None:
        with repeatable(CPU, 0):
            assert torch.are_deterministic_algorithms_enabled()
            bench(Outside(30)).fit(Candidate("concat", FusionMethod.CONCAT, SETTINGS))

    with pytest.raises(Stopped):
        stopped()
    assert torch.equal(torch.rand(1), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_derived_seeds_differ() -> None:
    """By every part, and by their order."""
    seeds = {derived_seed(*parts) for parts in [(0,), (1,), (0, 1), (1, 0), (0, "a"), (0, "b"), ("a", 0)]}
    assert len(seeds) == 7


def test_bf16_trains_too() -> None:
    """Autocast on a CPU that is asked for it: nearly the same losses."""
    candidate = Candidate("concat", FusionMethod.CONCAT, SETTINGS.changed(epochs=3))
    half = Candidate("half", FusionMethod.CONCAT, SETTINGS.changed(epochs=3, precision="bf16"))
    with repeatable(CPU, 0):
        exact, rough = (bench(Silence()).fit(c).fit for c in (candidate, half))
    assert rough.loss == pytest.approx(exact.loss, rel=0.05)
    assert rough.history != exact.history
    assert all(t.dtype is torch.float32 for t in rough.state.values())


def test_batches_hold_the_rows_that_were_asked_for() -> None:
    """Also when a part of them is taken."""
    data = blobs(10)
    batch = make_batch(data, np.array([3, 5]), np.arange(10), CPU)
    assert batch.take(slice(1, 2)).answers.tolist() == [5]
    np.testing.assert_array_equal(batch.vectors[Modality.TEXT][0].numpy(), data.vectors[Modality.TEXT][3])
