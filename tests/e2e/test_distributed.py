"""Several processes that train together: the same result as one, and all end when one does or the worker says so."""

import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from shared.catalog import EncoderSpec
from shared.errors import JobError, ShardCancelledError
from shared.fine_tuning import FineTuneRequest
from shared.items import PlannedItem
from shared.ml.distributed import TrainingProcessError, processes_for, run_ranks
from shared.ml.encoder_training import train_encoder
from shared.ml.encoders.base import WEIGHTS, TrainableEncoder
from shared.ml.encoders.loading import load_trainable
from shared.ml.encoders.transformers_audio import Window
from shared.ml.fitting import FittedModel
from shared.ml.prepared_items import ItemFile, write_items
from shared.ml.supervision import Supervision
from shared.ml.tuning import Examples, Tuner, recipe_of
from shared.settings import WorkerSettings
from shared.testing.tiny import tiny_bert, tiny_cnn, word_order
from shared.worker.progress import Silence

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = WorkerSettings(device="cpu", precision="fp32")
FUNCTIONS = "tests.e2e.rank_functions"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    """Without dropout, which would draw other values for other shares of a batch."""
    folder = tmp_path_factory.mktemp("bert")
    spec = tiny_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        config[name] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return spec


def texts(number: int) -> list[PlannedItem]:
    found = enumerate(word_order(number, 0))
    return [PlannedItem(index=i, id=f"i{i}", text=text, label=[label]) for i, (text, label) in found]


def read(encoder: TrainableEncoder, items: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
    for item in items:
        yield item, encoder.preprocess(str(item.text))


def ask(**training: Any) -> FineTuneRequest:
    body = {"type": "fine_tune", "features": "job-x", "train_encoder": "full", "encoder_training": training}
    return FineTuneRequest.model_validate(body)


class Listener(Silence):
    """Keeps what it is told, and checkpoints."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.saved: list[bytes] = []

    def report(self, kind: str, **facts: Any) -> None:
        self.epochs.append(facts["epoch"])

    def is_due(self) -> bool:
        return True

    def save(self, name: str, state: bytes) -> None:
        self.saved.append(state)

    def restore(self, name: str) -> bytes | None:
        return self.saved[-1] if self.saved else None


def train(spec: EncoderSpec, progress: Silence, processes: int, room: int) -> FittedModel:
    items = texts(60)
    settings = CPU.model_copy(update={"training_processes": processes, "model_memory_bytes": 2 * room})
    request = ask(epochs=3, learning_rate=1e-2, batch_size=15)
    return train_encoder(spec, None, request, items[:40], items[40:], read=read, settings=settings, progress=progress)


def test_two_processes_come_to_what_one_comes_to(bert: EncoderSpec) -> None:
    """But for rounding, with batches that do not divide evenly, some of the items in files, and some read anew; and
    from a checkpoint in the middle, they come to the very same."""
    alone = train(bert, Silence(), 1, room=10**6)
    listener = Listener()
    together = train(bert, listener, 2, room=1000)
    assert together.files.keys() == alone.files.keys()
    mine, theirs = (json.loads(model.files["training.json"]) for model in (together, alone))
    assert (mine["processes"], theirs["processes"]) == (2, 1)
    assert listener.epochs == [1, 2, 3]
    assert mine["best_epoch"] == theirs["best_epoch"]
    for epoch, expected in zip(mine["history"], theirs["history"], strict=True):
        assert epoch == pytest.approx(expected, rel=1e-4)
    weights, expected = (load(model.files[WEIGHTS]) for model in (together, alone))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-4, rtol=1e-3)

    halfway = Listener()
    halfway.saved = [listener.saved[len(listener.saved) // 2]]
    resumed = train(bert, halfway, 2, room=1000)
    assert 0 < len(halfway.epochs) < 3
    assert resumed.files == together.files


def test_sums_and_an_error_of_the_job() -> None:
    """Each process has the sum of all; what one raises for users is raised here, though the others hang."""
    found: dict[int, Any] = {}

    def keep(rank: int, values: Any) -> None:
        found[rank] = values

    with pytest.raises(JobError, match="too little of everything") as caught:
        run("add_up_and_fail", {"found": keep})
    assert (caught.value.error_code, caught.value.param) == ("too_little", "items")
    assert found == {rank: [[3.0] * 3, [3.0] * 4, [3.0]] for rank in (0, 1)}


def test_a_killed_process_ends_the_others() -> None:
    """The attempt fails in words; nobody waits for ever."""
    pids: list[int] = []
    with pytest.raises(TrainingProcessError, match="process 2 of 2 was killed by SIGKILL"):
        run("die", {"started": partial(note, pids)})
    assert not any(map(alive, pids))
    assert len(pids) == 2


def test_what_stops_the_run_ends_every_process() -> None:
    """Wherever they are."""
    pids: list[int] = []

    def check() -> None:
        if len(pids) == 2:
            raise ShardCancelledError("The job is being cancelled.")

    with pytest.raises(ShardCancelledError):
        run("wait_for_ever", {"started": partial(note, pids)}, check)
    assert not any(map(alive, pids))


def run(function: str, answers: dict[str, Any], check: Any = lambda: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(f"{FUNCTIONS}:{function}", Path(folder), 2, cpu=True, answers=answers, check=check)


def note(pids: list[int], pid: int) -> None:
    pids.append(pid)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Threads:
    """A group of two threads of this process."""

    def __init__(self, rank: int, barrier: threading.Barrier, given: list[Any]):
        self.rank, self.world_size, self._barrier, self._given = rank, 2, barrier, given

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        self._given[self.rank] = [tensor.clone() for tensor in tensors]
        self._barrier.wait()
        for tensor, parts in zip(tensors, zip(*self._given, strict=True), strict=True):
            tensor.copy_(sum(parts))
        self._barrier.wait()


class Memory:
    """Spectrograms in memory."""

    def __init__(self, items: list[Any], costs: list[int]):
        self._items, self.costs = items, costs

    def take(self, rows: Sequence[int]) -> list[Any]:
        return [self._items[row] for row in rows]


def test_statistics_of_batches_are_the_same_in_all_processes() -> None:
    """A network with batch normalisation: whatever each process sees, all have the same state after each step."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(size=(150, 64)).astype(np.float32) for _ in range(24)]
    supervision = Supervision("classifier", "single_label", ["a", "b"])
    barrier, given = threading.Barrier(2, timeout=60), [None, None]

    def tune(rank: int) -> dict[str, torch.Tensor]:
        encoder = encoders[rank]
        examples = Examples(Memory([encoder.preprocess(sound) for sound in sounds], [1] * 24), torch.arange(24) % 2)
        tuner = Tuner(
            encoder, supervision, recipe_of(ask(epochs=1).encoder_training, "full", from_scratch=True), seed=0,
            dtype=torch.float32, progress=Silence(), group=Threads(rank, barrier, given),
        )  # fmt: skip
        heads = tuner._network["head"]
        torch.nn.init.zeros_(heads[1].weight)
        torch.nn.init.zeros_(heads[1].bias)
        tuner.run(examples, examples)
        return encoder.module.state_dict()

    encoders = [load_trainable(tiny_cnn(), device="cpu") for _ in range(2)]
    start = encoders[0].module.state_dict()
    encoders[1].module.load_state_dict(start)
    before = {name: tensor.clone() for name, tensor in start.items()}
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(tune, (0, 1))
    changed = {name for name, tensor in first.items() if not torch.equal(tensor, before[name])}
    assert any("running_mean" in name for name in changed)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    ("wanted", "batch", "items", "expected"),
    [(0, 64, 1000, 1), (1, 64, 1000, 1), (4, 64, 1000, 4), (4, 6, 1000, 3), (4, 64, 5, 2), (4, 1, 1000, 1)],
)
def test_how_many_processes(wanted: int, batch: int, items: int, expected: int) -> None:
    """On a CPU one, unless told otherwise; never so many that one would have nothing to do."""
    settings = CPU.model_copy(update={"training_processes": wanted})
    assert processes_for(settings, torch.device("cpu"), batch, items) == expected


def test_one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as each gets enough of a batch; never more than there are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    found = [processes_for(CPU, torch.device("cuda"), batch, 10**6) for batch in (8, 16, 64, 1024)]
    assert found == [1, 2, 8, 8]
    assert processes_for(CPU, torch.device("cuda"), 8, 10**6, fewest=2) == 4
    asked = CPU.model_copy(update={"training_processes": 16})
    assert processes_for(asked, torch.device("cuda"), 1024, 10**6) == 8
    assert processes_for(CPU, torch.device("cuda", 1), 1024, 10**6) == 1


def test_items_in_files_are_what_they_were(tmp_path: Path) -> None:
    """What the encoders of each modality take."""
    rng = np.random.default_rng(0)
    windows = [Window({"input_features": torch.from_numpy(rng.normal(size=(3, 4)))}, 99) for _ in range(2)]
    items = {
        3: np.arange(5, dtype=np.int32),
        1: rng.integers(255, size=(4, 6, 3), dtype=np.uint8),
        7: torch.from_numpy(rng.normal(size=(3, 2, 2))).permute(1, 2, 0),
        0: windows,
    }
    write_items(tmp_path / "items", items)
    file = ItemFile(tmp_path / "items")
    assert sorted(file.rows) == sorted(items)
    for row in (1, 3):
        found = file.read(row)
        assert found.dtype == items[row].dtype
        np.testing.assert_array_equal(found, items[row])
    assert torch.equal(file.read(7), items[7])
    for mine, theirs in zip(file.read(0), windows, strict=True):
        assert isinstance(mine, Window)
        assert mine.samples == 99
        assert torch.equal(mine.inputs["input_features"], theirs.inputs["input_features"])
