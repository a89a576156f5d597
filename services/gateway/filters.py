"""Lists by metadata: `metadata[key]=value` in a query, which the framework does not read by itself."""

import re
from typing import Annotated, Any

from fastapi import Depends, Request

_PARAMETER = re.compile(r"metadata\[(.+)\]")

#: How it is described in the OpenAPI document.
METADATA_FILTER: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "`metadata[key]=value`: only jobs with this pair; may be repeated",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "example": {"project": "posts"},
        }
    ]
}


def _metadata(request: Request) -> dict[str, str]:
    found = request.query_params.multi_items()
    return {match[1]: value for name, value in found if (match := _PARAMETER.fullmatch(name))}


#: The pairs that are asked for.
MetadataFilter = Annotated[dict[str, str], Depends(_metadata)]
