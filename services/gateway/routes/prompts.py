"""Prompts: stored as versions of names, shown with an item, deleted."""

from typing import Annotated

from fastapi import APIRouter, Body, Query

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page
from shared import drawing
from shared.jobs import prompts
from shared.prompts import NewPrompt, PreviewRequest, Prompt, PromptPreview, PromptTemplate, as_text, conversation_of
from shared.schemas import Deleted, Item, Page

#: Labels in a preview: each has up to a hundred templates with tens of words.
_LABELS = 10

router = APIRouter(tags=["prompts"], responses=COMMON_ERRORS)


@router.post(
    "/v1/prompts",
    summary="Store a prompt",
    status_code=201,
    responses=answers(examples.PROMPT, 400, 413, status=201, words="The new version"),
)
def create_prompt(
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[NewPrompt, Body(openapi_examples=examples.PROMPT_REQUESTS)],
) -> Prompt:
    """Stores a prompt, which jobs can name by its id. One of a name that is there becomes its next version."""
    with services.sessions.begin() as session:
        return prompts.add_prompt(session, caller.tenant, request)


@router.get("/v1/prompts", summary="List prompts", responses=answers(examples.page_of(examples.PROMPT)))
def list_prompts(
    services: ServicesDep,
    caller: CallerDep,
    limit: Limit = 20,
    after: After = None,
    name: Annotated[str | None, Query(max_length=128)] = None,
    language: Annotated[str | None, Query(max_length=35)] = None,
    newest: Annotated[bool, Query(description="of each name its newest version alone")] = False,
) -> Page[Prompt]:
    """The tenant's prompts, newest first; those that match all filters."""
    with services.sessions() as session:
        found = prompts.list_prompts(
            session, caller.tenant, name=name, language=language, newest=newest, limit=limit + 1, after=after
        )
    return page(found, limit, lambda prompt: prompt.id)


@router.get("/v1/prompts/{id}", summary="Show a prompt", responses=answers(examples.PROMPT, 404))
def get_prompt(id: str, services: ServicesDep, caller: CallerDep) -> Prompt:
    """One version of a prompt."""
    with services.sessions() as session:
        return prompts.find_prompt(session, caller.tenant, id)


@router.post(
    "/v1/prompts/{id}/preview",
    summary="Show what a prompt makes of an item",
    responses=answers(examples.PROMPT_PREVIEW, 400, 404, 413),
)
def preview_prompt(
    id: str,
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[PreviewRequest, Body(openapi_examples=examples.PREVIEW_REQUESTS)],
) -> PromptPreview:
    """What language models and encoders are given of this item; nothing is stored, no model is asked."""
    with services.sessions() as session:
        prompt = prompts.find_prompt(session, caller.tenant, id).prompt
    return _preview(prompt, request.item)


@router.delete(
    "/v1/prompts/{id}", summary="Delete a prompt", responses=answers(examples.deleted("prompt", "prompt-…"), 404)
)
def remove_prompt(id: str, services: ServicesDep, caller: CallerDep) -> Deleted:
    """Deletes one version of a prompt. Jobs that were given it keep what it said."""
    with services.sessions.begin() as session:
        prompts.delete_prompt(session, caller.tenant, id)
    return Deleted(id=id, object="prompt")


def _preview(prompt: PromptTemplate, item: Item) -> PromptPreview:
    conversation = conversation_of(prompt, item)
    labels = list(dict.fromkeys([*item.labels, *prompt.verbalizers]))[:_LABELS]
    return PromptPreview(
        conversation=conversation,
        text=as_text(conversation),
        class_texts={label: prompt.class_texts(label) for label in labels},
        image=None if prompt.image_text is None else drawing.preview(prompt.image_text),
    )
