"""Find pictures, and write files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, UsageError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def pictures(places: Sequence[Path]) -> list[Path]:
    """The files among some places, and the pictures in the folders among them and below, in order of their names.

    Raises:
        UsageError: a folder holds no picture.
    """
    found = []
    for place in places:
        if place.is_dir():
            inside = (file for file in place.rglob("*") if file.is_file() and file.suffix.lower() in PICTURES)
            some = sorted(file for file in inside if not file.name.startswith("."))
            if not some:
                raise UsageError(f"the folder {place} holds no picture ({', '.join(PICTURES)})")
            found += some
        else:
            found.append(place)
    return found


def writable(path: Path, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before anything is computed.

    Raises:
        UsageError: its ending is another, or its folder is not there.
        InputError: the file or folder is protected.
    """
    if path.suffix.lower() not in endings:
        raise UsageError(f"{path} must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} is not there: make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: check its permissions")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a draft in the same folder that takes the file's place at the end, or vanishes with an error.

    Raises:
        InputError: the system refuses to write there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
