"""The base of what users send."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A model of what users send: unknown fields are errors, so that a typing mistake is not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
