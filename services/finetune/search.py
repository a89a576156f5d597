"""A search for better settings: the judge are validation items, and weak trials are cut short."""

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from services.finetune.candidates import Candidate
from services.finetune.library import Bench
from shared.fine_tuning import Search, Training

#: Name of the checkpoint of the finished trials.
TRIALS = "trials"

#: What a candidate's own setting is multiplied with, and what stands instead of it.
_FACTORS = {"learning_rate": (0.1, 10.0), "weight_decay": (0.03, 10.0)}
_RANGES = {"dropout": (0.0, 0.75), "modality_dropout": (0.0, 0.6)}
_CHOICES = {"hidden": [0, 32, 64, 128, 256, 512], "head": [0, 64, 128]}


@dataclass(frozen=True)
class Tried:
    """A trial that ended. `loss` is null if it was cut short or diverged; `losses` are those after each epoch."""

    number: int
    candidate: str
    settings: dict[str, Any]
    losses: list[float]
    loss: float | None


class SettingsSearch:
    """Trials of changed candidates on a bench; what the request gives is not changed.

    The sampler is TPE (Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011). A trial whose
    validation loss is worse than the median of the others at the same epoch ends there. The candidates as they are
    come first. A restarted search asks its sampler anew and tells it what is known already, so that it goes on as it
    would have.
    """

    def __init__(self, bench: Bench, candidates: Sequence[Candidate], search: Search, training: Training):
        self._bench, self._search, self._training = bench, search, training
        self._candidates = {candidate.name: candidate for candidate in candidates}
        self._tried: list[tuple[Candidate, Tried]] = []

    @property
    def trials(self) -> list[dict[str, Any]]:
        """All that were tried, as JSON."""
        return [asdict(tried) for _, tried in self._tried]

    def best(self, count: int) -> list[Candidate]:
        """The candidates of the best trials, best first."""
        complete = [(tried.loss, tried.number, c) for c, tried in self._tried if tried.loss is not None]
        return [replace(c, name=f"search-{i}") for i, (_, _, c) in enumerate(sorted(complete)[:count], 1)]

    def run(self) -> None:
        """Tries until there were enough trials, or the time is over."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=self._training.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=5),
        )
        for candidate in self._candidates.values():
            study.enqueue_trial(self._as_it_is(candidate))
        earlier, spent = self._restored()
        begun = time.monotonic() - spent
        while len(self._tried) < self._search.trials:
            known = earlier[len(self._tried)] if len(self._tried) < len(earlier) else None
            seconds = time.monotonic() - begun
            if known is None and self._tried and seconds > (self._search.seconds or math.inf):
                break
            trial = study.ask()
            candidate = self._changed(trial)
            tried = self._replay(trial, known) if known else self._try(trial, candidate)
            study.tell(trial, tried.loss, TrialState.PRUNED if tried.loss is None else TrialState.COMPLETE)
            self._tried.append((candidate, tried))
            if known is None:
                self._save(time.monotonic() - begun)
                self._bench.progress.report("trial", **asdict(replace(tried, losses=[])))

    def _try(self, trial: Trial, candidate: Candidate) -> Tried:
        losses: list[float] = []

        def on_epoch(epoch: int, loss: float) -> None:
            losses.append(loss)
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        loss: float | None = None
        with contextlib.suppress(optuna.TrialPruned):
            loss = self._bench.try_out(candidate, on_epoch)
        found = loss if loss is not None and math.isfinite(loss) else None
        return Tried(trial.number, trial.params["candidate"], candidate.settings.as_json(), losses, found)

    def _replay(self, trial: Trial, known: Tried) -> Tried:
        for epoch, loss in enumerate(known.losses, 1):
            trial.report(loss, epoch)
        return known

    def _changed(self, trial: Trial) -> Candidate:
        """The candidate that the sampler asks for."""
        base = self._candidates[trial.suggest_categorical("candidate", list(self._candidates))]
        changes: dict[str, Any] = {}
        for name in self._open():
            if name in _FACTORS:
                factor = trial.suggest_float(name, *_FACTORS[name], log=True)
                changes[name] = getattr(base.settings, name) * factor
            elif name in _RANGES:
                changes[name] = trial.suggest_float(name, *_RANGES[name])
            else:
                changes[name] = trial.suggest_categorical(name, _CHOICES[name])
        return replace(base, name=f"trial-{trial.number}", settings=base.settings.changed(**changes))

    def _as_it_is(self, candidate: Candidate) -> dict[str, Any]:
        own = {name: 1.0 if name in _FACTORS else getattr(candidate.settings, name) for name in self._open()}
        return {"candidate": candidate.name} | own

    def _open(self) -> list[str]:
        """The settings that the request leaves open."""
        return [name for name in (*_FACTORS, *_RANGES, *_CHOICES) if getattr(self._training, name) is None]

    def _save(self, seconds: float) -> None:
        trials = [asdict(tried) for _, tried in self._tried]
        self._bench.progress.save(TRIALS, json.dumps({"seconds": seconds, "trials": trials}).encode())

    def _restored(self) -> tuple[list[Tried], float]:
        data = self._bench.progress.restore(TRIALS)
        if data is None:
            return [], 0.0
        saved = json.loads(data)
        return [Tried(**tried) for tried in saved["trials"]], saved["seconds"]
