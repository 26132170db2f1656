"""Published schemas of the files that this software writes, one for each version."""

from __future__ import annotations

import json
from pathlib import Path

from blend.blended import json_schema
from blend.blended.document import SCHEMA_VERSION

FILE = Path(__file__).parent / f"blended-criterion-{SCHEMA_VERSION}.schema.json"


def text() -> str:
    """What belongs into the file of the present version."""
    return json.dumps(json_schema(), indent=2) + "\n"
