"""Rows of data sets, and files of them."""

import json
from pathlib import Path
from typing import Any

META = {"id": "01890a5d-ac96-774b-bcce-b302099a8057", "created_at": 1}
ASK: list[list[Any]] = [["user", "Colour of the sky?"]]
PROMPT = {"prompt": ASK, "metadata": META}
COMPLETION = {**PROMPT, "completion": ["assistant", "Blue."]}
METRIC = {**COMPLETION, "metrics": {"correct": 1.0}}
PREFERENCE = {
    **PROMPT,
    "good_completion": ["assistant", "Blue."],
    "bad_completion": ["assistant", [{"type": "text", "text": "Gr"}, {"type": "text", "text": "een."}]],
}

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}


def write(folder: Path, *lines: Any) -> Path:
    """A file of these rows; bytes are written as they are."""
    file = folder / "rows.jsonl"
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(encoded) + b"\n")
    return file
