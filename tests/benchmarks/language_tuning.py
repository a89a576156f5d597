"""Times LoRA training against a plain loop of transformers and PEFT on the same conversations, in one process.

    python tests/benchmarks/language_tuning.py [conversations] [threads]

The plain loop pads to the right and has logits of all tokens, as `model(input_ids, labels=...)` computes them. Prints
tokens per second (best of the rounds, which alternate), the ratio, peak memory beyond the model's, and both losses.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.conversations import Message
from shared.language_models import LanguageModelSpec
from shared.language_tuning import LanguageTraining
from shared.ml.device import configure_threads
from shared.ml.language.adapters import PeftAdapter
from shared.ml.language.conversations import Encoded
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.tuned import TunedConfig, TunedLanguageModel
from shared.testing.tiny import tiny_language_model

ROUNDS, BATCH = 3, 8
#: A vocabulary as large, by the model's width, as those of small language models are.
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 100_000}


def model_of(folder: Path) -> LanguageModel:
    """A Llama with random weights and a large vocabulary."""
    import transformers

    spec = tiny_language_model(folder)
    config: Any = transformers.LlamaConfig.from_pretrained(folder)
    config.update(SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return load_language_model(LanguageModelSpec(id="bench", loader="transformers", source=spec.source), device="cpu")


def conversations(model: TunedLanguageModel, count: int) -> list[Encoded]:
    """Questions of 40 to 200 letters, short answers, always the same."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), int(rng.integers(40, 200)))) for _ in range(count)]
    found = [model.encode([Message(role="user", content=text)], [], answer="yes") for text in texts]
    return sorted(found, key=len)


def ours(model: TunedLanguageModel, batches: list[list[Encoded]], optimizer: torch.optim.Optimizer) -> float:
    """A pass over the batches as the recipe makes it; the mean loss."""
    losses = []
    with model.active():
        for batch in batches:
            optimizer.zero_grad()
            total, learned = model.loss(model.batch(batch, [[]] * len(batch)))
            (total / learned).backward()
            optimizer.step()
            losses.append(float(total.detach()) / learned)
    return float(np.mean(losses))


def plain(peft: Any, batches: list[list[Encoded]], optimizer: torch.optim.Optimizer) -> float:
    """The same with what transformers and PEFT offer."""
    losses = []
    for batch in batches:
        width = max(map(len, batch))
        ids, labels, mask = (torch.full((len(batch), width), fill) for fill in (0, -100, 0))
        for row, one in enumerate(batch):
            ids[row, : len(one)], labels[row, : len(one)] = torch.tensor(one.ids), torch.tensor(one.labels)
            mask[row, : len(one)] = 1
        optimizer.zero_grad()
        loss = peft(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Resident megabytes at most, beyond those at the start; in the list at the end."""
    found, done = [0.0], threading.Event()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    begun = resident()

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], resident() - begun)

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()


def main(count: int = 64, threads: int = 2) -> None:
    configure_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        base, other = model_of(Path(folder)), load_language_model(
            LanguageModelSpec(id="plain", loader="transformers", source=folder), device="cpu"
        )  # fmt: skip
    from peft import LoraConfig, get_peft_model

    training = LanguageTraining(lora_dropout=0.0)
    torch.manual_seed(0)
    adapter = PeftAdapter.new(base.model, training)
    tuned = TunedLanguageModel(base, TunedConfig(language_model="bench", fingerprint="", adapter="lora"), adapter, {})
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    peft: Any = get_peft_model(other.model, lora)
    encoded = conversations(tuned, count)
    batches = [encoded[i : i + BATCH] for i in range(0, count, BATCH)]
    first = torch.optim.AdamW([p for _, p in adapter.parameters()], lr=1e-4)
    second = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-4)
    runs: dict[str, Callable[[], float]] = {
        "transformers + peft": lambda: plain(peft, batches, second), "trivium": lambda: ours(tuned, batches, first),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory, losses = dict.fromkeys(runs, 0.0), {name: run() for name, run in runs.items()}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            begun = time.perf_counter()
            with peak_memory() as peak:
                run()
            seconds[name].append(time.perf_counter() - begun)
            memory[name] = max(memory[name], peak[0])
    tokens, theirs = sum(map(len, encoded)), seconds["transformers + peft"]
    for name, times in seconds.items():
        ratio = float(np.median(np.array(theirs) / np.array(times)))
        print(
            f"{name:20} {tokens / min(times):8.0f} tokens/s   {ratio:5.2f} x   peak {memory[name]:7.1f} MB   "
            f"first loss {losses[name]:.4f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
