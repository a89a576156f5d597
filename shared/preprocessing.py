"""What a job may ask to be done to its items before any encoder sees them: `preprocessing` in a request."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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


class DrawnText(_Options):
    """Words on a picture, in the font that ships: European scripts, Chinese, Japanese, Korean.

    They stand in a band of the picture's centred square, as large as they fit, on as many lines as suit, with an
    outline that keeps them legible on any ground.
    """

    text: str = Field(
        min_length=1, max_length=256, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$", examples=["a photo of an animal"]
    )
    place: Literal["top", "middle", "bottom"] = "bottom"
    height: float = Field(0.25, gt=0, le=1, description="of the band, as a share of the square's")
    colour: str = Field("#ffffff", pattern=r"^#[0-9a-fA-F]{6}$")
    outline: str = Field("#000000", pattern=r"^#[0-9a-fA-F]{6}$")


class ImagePreprocessing(_Options):
    """How images are decoded. That they are turned upright, laid on white and sized for the encoder is a given.

    `fast_jpeg` decodes large JPEGs at 1/2, 1/4 or 1/8 of their size where the encoder scales them down anyway: up to
    ten times faster, with slightly different vectors. `drawn_text` is drawn on every picture.
    """

    grayscale: bool = False
    fast_jpeg: bool = False
    drawn_text: DrawnText | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Fingerprints of the cache are made of this: those of before must stay.
        return {name: value for name, value in dump(self).items() if value is not None}


class AudioPreprocessing(_Options):
    """What is done to sound after it is mixed to mono and resampled for the encoder, in this order."""

    first_seconds: float | None = Field(default=None, gt=0, le=86_400, description="use only the beginning")
    trim_silence: bool = Field(default=False, description="cut both ends where trim_db below the loudest")
    trim_db: float = Field(default=60.0, gt=0, le=200)
    normalize: bool = Field(default=False, description="scale to a peak of 1")


class Preprocessing(_Options):
    """The choices for each modality."""

    text: TextPreprocessing = Field(default_factory=TextPreprocessing)
    image: ImagePreprocessing = Field(default_factory=ImagePreprocessing)
    audio: AudioPreprocessing = Field(default_factory=AudioPreprocessing)
