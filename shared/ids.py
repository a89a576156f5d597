"""Identifiers: a kind, 48 bits of milliseconds and 80 random bits, in Crockford's base 32, so that they sort by age."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(kind: str) -> str:
    """A fresh identifier such as `job-01k9w0c3v8e6m5j2k1x7r4t9qz`."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{kind}-" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
