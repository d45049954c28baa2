"""The hash of a model's content, remembered so that an unchanged file is neither read nor parsed again.

A note per path keeps the hash with the states of the file and of its external data, as git's index does. A note about a
file that was changed within :data:`~trtrun.building.files.TICK` before it was hashed does not count, since it may have
been changed once more within that tick: the file is hashed again, and noted again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ..plan import model_file_error, read_model_file
from . import files
from .files import file_state, write_atomic
from .onnx_check import check_model


def content_hash(model: str | os.PathLike[str] | bytes, notes: Path) -> str:
    """SHA-256 of an ONNX file and its external data; ``notes`` is the folder of what is remembered.

    Raises what :func:`trtrun.building.onnx_check.check_model` raises, where the file must be read.
    """
    if isinstance(model, bytes):
        check_model(model)
        return hashlib.sha256(model).hexdigest()
    path = os.path.abspath(model)
    note = notes / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    if known := _remembered(note, path):
        return known
    now = time.time_ns()
    try:
        states = {path: file_state(path)}  # before a file is read: what changes it from here on changes its state
    except OSError as error:
        raise model_file_error(model, error) from error
    digest = hashlib.sha256()
    external = check_model(model)  # checked before what it names is read
    states |= {os.path.abspath(file): file_state(file) for file in external}
    for file in (model, *external):
        digest.update(read_model_file(file))
    facts = {"model": path, "states": states, "hashed": now, "sha256": digest.hexdigest()}
    with suppress(OSError):  # a cache that may only be read: hashed again next time
        write_atomic(note, json.dumps(facts, indent=1).encode())
    return digest.hexdigest()


def forget(notes: Path, *, all_of_them: bool) -> None:
    """Remove what is remembered of models that are gone, or everything."""
    for note in notes.glob("*.json"):
        try:
            gone = all_of_them or not os.path.exists(json.loads(note.read_bytes())["model"])
        except (OSError, ValueError, KeyError, TypeError):
            gone = True
        if gone:
            note.unlink(missing_ok=True)


def _remembered(note: Path, path: str) -> str | None:
    try:
        facts = json.loads(note.read_bytes())
        states, hashed, found = facts["states"], facts["hashed"], facts["sha256"]
        for file, state in {path: None, **states}.items():
            if file_state(file) != state or max(state[2:]) > hashed - files.TICK:
                return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return str(found)
