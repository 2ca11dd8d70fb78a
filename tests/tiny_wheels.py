"""Makes real, empty packages for pip."""

import hashlib
import zipfile
from pathlib import Path


def wheel(folder: Path, name: str) -> str:
    """Writes the smallest package that pip installs; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.dist-info"
    files = {
        f"{name}.py": "",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    made = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(path, text)
    return hashlib.sha256(made.read_bytes()).hexdigest()
