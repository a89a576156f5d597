"""What a job may ask to be done to its items before any encoder sees them: `preprocessing` in a request."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Language = Literal["en", "zh"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPreprocessing(_Options):
    """How text is cleaned, in this order: Unicode normalisation, lower case, stop words.

    `language` decides how text is cut into words (for stop words and Word2Vec); `auto` goes by the script.
    """

    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    lowercase: bool = False
    stop_words: tuple[Language, ...] = Field(default=(), description="languages whose stop words are removed")
    language: Literal["auto", "en", "zh"] = "auto"


class Preprocessing(_Options):
    """The choices for each modality."""

    text: TextPreprocessing = Field(default_factory=TextPreprocessing)
