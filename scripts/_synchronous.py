"""Make the synchronous client of the asynchronous one: `src/harmonia/sdk/sync` of `src/harmonia/sdk/aio`.

With a folder as its argument, it writes there instead.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/harmonia/sdk/aio"
TARGET = ROOT / "src/harmonia/sdk/sync"
NOTE = "# Made by scripts/generate of {}: change that file, then run the script.\n"
WORDS = {
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\b__a(enter|exit|iter|next)__": r"__\1__",
    r"\ba(close|read|iter_bytes)\b": r"\1",
    r"\bAsync([A-Z]\w*)": r"\1",
    r"\bimport asyncio\b": "import time",
    r"\basyncio\.sleep\b": "time.sleep",
    r"\bharmonia\.sdk\.aio\b": "harmonia.sdk.sync",
}


def synchronous(text: str) -> str:
    """The same program without waiting for others."""
    for pattern, replacement in WORDS.items():
        text = re.sub(pattern, replacement, text)
    return text


def main() -> None:
    """Write every module anew."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    for file in sorted(SOURCE.glob("*.py")):
        if file.name != "__init__.py":
            note = NOTE.format(file.relative_to(ROOT).as_posix())
            (target / file.name).write_text(note + synchronous(file.read_text(encoding="utf-8")), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--quiet", "--config", str(ROOT / "pyproject.toml")]
    subprocess.run([*ruff, "check", "--select", "I", "--fix", *settings, str(target)], check=True)
    subprocess.run([*ruff, "format", *settings, str(target)], check=True)


main()
