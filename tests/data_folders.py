"""Data folders of files that are no pictures: what a scan reads is their names and bytes."""

import os
from pathlib import Path


def write(root: Path, *names: str) -> Path:
    """Writes files, each with its own name as content; a scan does not decode."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root
