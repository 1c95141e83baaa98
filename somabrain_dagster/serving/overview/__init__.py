"""The page for people: the same bytes for everybody, without anybody's data and with nothing from elsewhere.

Its script reads the service's own routes with the key that a person pastes, and keeps that key for as long as
the tab is open.
"""

import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from string import Template

from somabrain_dagster.learning.neuromodulators import LEVELS
from somabrain_dagster.learning.weights import WEIGHTS
from somabrain_dagster.serving.answers import Answer

_HERE = files(__name__)


def overview() -> Answer:
    """The page, with headers by which a browser runs its script and style alone and asks nobody else."""
    style, script = _read("overview.css"), _read("overview.js")
    known = {
        "weights": [{"name": weight.name, "symbol": weight.symbol} for weight in WEIGHTS],
        "levels": {name: {"low": low, "high": high} for name, (low, high) in LEVELS.items()},
    }
    body = Template(_read("overview.html")).substitute(
        style=style, script=script, known=json.dumps(known, ensure_ascii=False)
    )
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(script)}",
            f"style-src {_source(style)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return Answer(
        body.encode(),
        media_type=b"text/html; charset=utf-8",
        headers={
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        },
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _source(text: str) -> str:
    """What a policy calls an inline text by."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
