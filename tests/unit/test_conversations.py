"""Records in the formats of others become items: media beside the conversation, markers in it."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.conversations import markers
from shared.items import Item

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}


def item(**fields: Any) -> Item:
    return Item.model_validate({"id": "a", **fields})


def turns(found: Item) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in found.messages or ()]


def test_a_chat_record_has_its_media_beside_it() -> None:
    content = [{"type": "text", "text": "See "}, IMAGE, AUDIO, {"type": "text", "text": "?"}]
    found = item(messages=[{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}])
    assert (found.image, found.audio) == ("data:image/png;base64,AAAA", "data:audio/mp3;base64,AAAA")
    assert markers(found.messages or []) == ["image", "audio"]
    assert turns(found) == [("user", "See ?"), ("assistant", "a cat")]
    assert Item.model_validate(found.model_dump(exclude_none=True)) == found


def test_alpaca_and_sharegpt_records() -> None:
    assert turns(item(instruction="Add.", input="1 + 1", output="2")) == [("user", "Add.\n\n1 + 1"), ("assistant", "2")]
    shared = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    assert turns(item(conversations=shared)) == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yo")]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conversations": [{"from": ["human"], "value": "Hi"}]}, "needs `from`"),
        ({"conversations": "Hi"}, "needs `from`"),
        ({"conversations": [None]}, "needs `from`"),
        ({"messages": [{"role": "user", "content": [IMAGE, IMAGE]}]}, "more than one image"),
        ({"messages": [{"role": "user", "content": [IMAGE]}], "image": "b.png"}, "hold one already"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "input_audio.data"),
        ({"messages": [{"role": "root", "content": "Hi"}]}, "'system', 'user' or 'assistant'"),
        ({"messages": []}, "at least 1 item"),
    ],
)
def test_what_is_broken_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        item(**fields)
