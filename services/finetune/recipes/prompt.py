"""The recipe for prompts: a classifier of a pretrained model that is asked in words, or in learned vectors."""

from dataclasses import replace
from typing import Any

import numpy as np

from services.finetune.artifacts import write_artifacts
from services.finetune.assessment import assess
from services.finetune.checks import Finding, check_alone, check_parts, check_sizes
from services.finetune.data import Dataset
from services.finetune.language.data import Conversations
from services.finetune.modelling import Outside, Run, Trained
from services.finetune.outcome import Outcome
from services.finetune.prompting.context import learn_context
from services.finetune.prompting.dual import class_vectors, zero_shot
from services.finetune.prompting.likelihood import choose_by_likelihood
from services.finetune.prompting.pretrained import Pretrained
from services.finetune.prompting.ranking import as_metrics, try_all
from services.finetune.recipes.classifier import class_problem
from services.finetune.recipes.supervised import describe_run, spec_of, trainable
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, Training
from shared.json_numbers import as_json
from shared.language_tuning import How, PromptRequest
from shared.ml.encoders.base import Encoder
from shared.ml.repeatable import generator
from shared.ml.splits import divide
from shared.prompts import PromptTemplate

#: Fewer items than this, and neither can a prompt be chosen nor a score be measured.
_FEWEST_ITEMS = 10


def prompt(data: Dataset | Conversations, request: PromptRequest, outside: Outside, models: Pretrained) -> Outcome:
    """A classifier of a language model, if the request names one, or of a dual encoder."""
    if isinstance(data, Conversations):
        return choose_by_likelihood(data, request, outside, models.language_model())
    return _compare(data, request, outside, models)


def _compare(data: Dataset, request: PromptRequest, outside: Outside, models: Pretrained) -> Outcome:
    """A classifier of a dual encoder, chosen by validation items and measured on test items.

    Raises JobError (`no_labels`, `several_labels`, `too_few_items`, `one_class`), and what stops the run.
    """
    run, findings = _prepare(data, request, outside)
    for finding in findings:
        outside.progress.report(finding.severity, code=finding.code, message=finding.message)
    outside.progress.report("split", **{part: len(rows) for part, rows in run.parts.named().items()})
    if request.how is How.CONTEXT:
        template = _template(request)
        learned = learn_context(run, request, template, models.trainable_text_tower())
        fused, vectors, extra = learned.trained, learned.vectors, learned.files
        tried: list[dict[str, Any]] = []
    else:
        fused, vectors, tried = _best_prompt(run, request, models.text_tower())
        extra = {}
    alone = {m: zero_shot(m.value, run.on([m]), vectors, request.scale) for m in run.data.vectors}
    measured = assess(run, fused, alone)
    findings += check_alone(measured["alone"])
    metrics = as_json(
        describe_run(run, fused, findings) | {"method": "prompt", "how": request.how.value, "prompts": tried} | measured
    )
    outside.progress.report("step", doing="writing the model")
    spec = spec_of(run, fused) | {"method": "prompt"}
    return Outcome(write_artifacts(run, fused, metrics) | extra, metrics, spec, kind="classifier")


def _best_prompt(
    run: Run, request: PromptRequest, encoder: Encoder
) -> tuple[Trained, np.ndarray[Any, np.dtype[np.float32]], list[dict[str, Any]]]:
    """The classifier of the prompt that is best on validation items, its class vectors, and all that were tried."""
    judges = run.parts.validation
    items = run.data.take(judges)

    def make(template: PromptTemplate) -> tuple[Any, Any]:
        vectors = class_vectors(encoder, template, run.problem.classes, run.outside.progress.check)
        trained = zero_shot("zero-shot", run, vectors, request.scale)
        return (trained, vectors), trained.model.outputs(items.vectors, items.present)

    templates = [_resolved(t) for t in request.templates]
    found = try_all(templates, make, run.problem, judges, run.outside.progress)
    trained, vectors = found[0].made
    return trained, vectors, as_metrics(found)


def _prepare(data: Dataset, request: PromptRequest, outside: Outside) -> tuple[Run, list[Finding]]:
    """The labelled items, by id, divided as those of the other recipes are; of all their labels there are classes,
    since prompts need no training item of one."""
    usable = data.take(sorted(np.flatnonzero(data.usable()), key=data.ids.__getitem__))
    asked = FineTuneRequest(
        type=request.type, features="", training=Training(seed=request.training.seed), splitting=request.splitting,
        multi_label=False,
    )  # fmt: skip
    items, problem = class_problem(usable, asked)
    if len(items) < _FEWEST_ITEMS:
        message = f"Only {len(items)} items can be used; give at least {_FEWEST_ITEMS}."
        raise JobError(message, code="too_few_items", param="items")
    if len(problem.classes) < 2:
        message = f"All items have the label {problem.classes[0]!r}: there is nothing to tell apart."
        raise JobError(message, code="one_class", param="items")
    problem = replace(problem, known=len(problem.classes))
    parts = divide(items.splits, problem.strata, asked.splitting, generator(asked.training.seed, "split"))
    items, findings = trainable(items, parts)
    if len(items) < len(data):
        message = f"{len(data) - len(items)} of {len(data)} items have no label or no vector; they are left out."
        findings.append(Finding("left_out", "info", message))
    trains = request.how is How.CONTEXT
    findings += (
        check_parts(items, problem, parts) if trains else [f for f in check_sizes(parts) if "train" not in f.code]
    )
    prior = problem.prior(parts.train) if trains else np.full(problem.known, 1 / problem.known)
    return Run(items, problem, parts, asked, outside, prior), findings


def _template(request: PromptRequest) -> PromptTemplate:
    return _resolved(request.templates[0])


def _resolved(template: PromptTemplate | str) -> PromptTemplate:
    assert isinstance(template, PromptTemplate)  # the gateway has put stored prompts in the place of their ids
    return template
