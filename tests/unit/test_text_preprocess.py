"""Text: decoding, normalisation, words of English and Chinese, stop words."""

import subprocess
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.text.preprocess import decode, tokenize
from shared.errors import ItemError
from shared.preprocessing import Preprocessing, TextPreprocessing

DEFAULT = TextPreprocessing()


def code_of(data: bytes | str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(ItemError) as caught:
        decode(data, options or {})
    return caught.value.error_code


@given(st.text().filter(lambda text: text.strip() and not text.startswith("\ufeff")))
def test_without_options_text_stays_as_it_is_but_for_nfc(text: str) -> None:
    expected = unicodedata.normalize("NFC", text)
    assert decode(text.encode(), {}) == decode(text, {}) == expected


@given(st.binary())
def test_bytes_give_text_or_an_item_error(data: bytes) -> None:
    try:
        code, text = None, decode(data, {"normalization": "none"})
    except ItemError as error:
        code, text = error.error_code, ""
    assert code in {"corrupt_media", "empty_text"} or text.encode() == data.removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfeh\x00i\x00", b"\xed\xa0\x80", "lone \ud800 surrogate"])
def test_what_is_not_utf8_is_an_item_error(data: bytes | str) -> None:
    assert code_of(data) == "corrupt_media"


def test_a_byte_order_mark_is_dropped() -> None:
    assert decode(b"\xef\xbb\xbfhello", {}) == "hello"


def test_the_limit_is_in_bytes() -> None:
    assert decode("世界", {"max_bytes": 6}) == "世界"
    assert code_of("世界!", {"max_bytes": 6}) == "text_too_large"
    assert code_of(b"x" * 7, {"max_bytes": 6}) == "text_too_large"


@pytest.mark.parametrize(
    ("text", "options"),
    [("", {}), (" \n\t\u3000", {}), ("The of AND", {"stop_words": ["en"]}), ("我们的", {"stop_words": ["zh"]})],
)
def test_text_of_which_nothing_is_left_is_empty(text: str, options: dict[str, Any]) -> None:
    assert code_of(text, options) == "empty_text"


def test_normalisation_and_lower_case() -> None:
    assert decode("ﬁne ＡＢＣ e\u0301", {}) == "ﬁne ＡＢＣ é"
    assert decode("ﬁne ＡＢＣ e\u0301", {"normalization": "NFKC"}) == "fine ABC é"
    assert decode("e\u0301", {"normalization": "none"}) == "e\u0301"
    assert decode("Straße ÉCOLE", {"lowercase": True}) == "straße école"


def test_other_options_are_not_looked_at() -> None:
    assert decode("Hi", {"max_pixels": 3, "sample_rate": 16000}) == "Hi"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don’t panic: it's only 1,234.5 USD!", ["don't", "panic", "it's", "only", "1,234.5", "usd"]),
        ("GPT4 and COVID-19", ["gpt4", "and", "covid", "19"]),
        ("naïve café, Ærøskøbing", ["naïve", "café", "ærøskøbing"]),
        ("...!?", []),
        ("我来到北京清华大学", ["我", "来到", "北京", "清华大学"]),
        ("我爱machine learning，和COVID19。", ["我", "爱", "machine", "learning", "和", "covid19"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert tokenize(text, DEFAULT) == words


def test_language_decides_how_words_are_cut() -> None:
    assert tokenize("北京大学 campus", TextPreprocessing(language="en")) == ["北京大学", "campus"]
    assert tokenize("北京大学 campus", TextPreprocessing(language="zh")) == ["北京大学", "campus"]
    assert tokenize("我来到北京", TextPreprocessing(language="en")) == ["我来到北京"]
    japanese = "これは東京です"
    assert tokenize(japanese, DEFAULT) == [japanese]
    assert "东京" in tokenize("东京ですね", TextPreprocessing(language="zh"))


def test_stop_words() -> None:
    both = {"stop_words": ["en", "zh"]}
    assert decode("The cat doesn’t sit on the mat, you know.", both) == "cat sit mat, know."
    assert decode("我的猫很可爱", both) == "猫 可爱"
    assert decode("我的cat和the dog", both) == "cat dog"
    assert decode("我的猫 and the dog", {"stop_words": ["en"]}) == "我的猫 dog"
    assert tokenize("The cat and 我的猫", TextPreprocessing(stop_words=("en", "zh"))) == ["cat", "猫"]


def test_a_removed_word_does_not_join_its_neighbours() -> None:
    assert tokenize("清华的大学", TextPreprocessing(stop_words=("zh",))) == ["清华", "大学"]


@given(st.text(alphabet=st.sampled_from("aB ’'9.,我的北京大学é\n")), st.sampled_from(["auto", "en", "zh"]))
def test_words_are_cut_from_the_text_in_order(text: str, language: str) -> None:
    position, folded = 0, unicodedata.normalize("NFC", text).lower().replace("’", "'")
    for word in tokenize(text, TextPreprocessing(language=language)):
        position = folded.index(word, position) + len(word)


@pytest.mark.parametrize("wrong", [{"stop_words": ["fr"]}, {"normalization": "NFX"}, {"lower": True}])
def test_unknown_choices_are_refused_in_a_request(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate({"text": wrong})


def test_chinese_leaves_no_cache_file_and_no_log_and_needs_no_torch(tmp_path: Any) -> None:
    program = (
        "import sys\n"
        "from services.text.preprocess import decode, tokenize\n"
        "from shared.preprocessing import TextPreprocessing\n"
        "assert 'jieba' not in sys.modules\n"
        "assert tokenize('清华大学', TextPreprocessing()) == ['清华大学']\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {
        "TMPDIR": str(tmp_path),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "pyc"),
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "pyc"] == []
