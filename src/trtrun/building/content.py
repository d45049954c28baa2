"""The hash of a model's content, remembered so that an unchanged file is neither read nor parsed again.

A note per path keeps the hash with the states of the file and of its external data, as git's index does. It is made
only of files that have settled (:func:`~trtrun.building.files.has_settled`): what changes them later changes their
states. A file that was changed within the last two seconds is hashed again the next time; one that was within the last
minute is written back to its disk first, so that writes through memory maps show from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ModelFileError
from ..plan import model_file_error
from . import files
from .files import file_state, write_atomic
from .onnx_check import check_model

_TRIES = 3


@dataclass(frozen=True)
class Content:
    """What a model held, and the states in which its files held it; equal where nothing has changed in between."""

    sha256: str
    states: dict[str, list[int]]
    settled: bool = field(default=True, compare=False)  # whether every later change will show in the states


def content_of(model: str | os.PathLike[str] | bytes, notes: Path) -> Content:
    """The SHA-256 of an ONNX file and its external data; ``notes`` is the folder of what is remembered.

    Raises what :func:`trtrun.building.onnx_check.check_model` raises, where the file must be read, and ModelFileError
    for a file that is being written all the while.
    """
    if isinstance(model, bytes):
        check_model(model)
        return Content(hashlib.sha256(model).hexdigest(), {})
    # The path that is noted is the one that is opened, without the links that it leads through; the file itself may be
    # a link, beside which its external data is found.
    folder, name = os.path.split(os.fspath(model))
    path = os.path.join(os.path.realpath(folder), name)
    note = notes / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    if known := _remembered(note, path):
        return known
    for _ in range(_TRIES):
        if (content := _read(path)) is None:
            continue
        if content.settled:
            facts = {"model": path, "states": content.states, "sha256": content.sha256}
            with suppress(OSError):  # a cache that may only be read: hashed again next time
                write_atomic(note, json.dumps(facts, indent=1).encode())
        return content
    raise ModelFileError(f"{os.fspath(model)!r} is changed while it is read. Wait until it is written, and ask again.")


def _read(path: str) -> Content | None:
    """Hash a model; None where a file was changed meanwhile. Names and lengths of external data are hashed with it."""
    now, settled = time.time_ns(), True
    try:
        states = {path: file_state(path)}  # before the file is checked, and compared with what is opened then
    except OSError as error:
        raise model_file_error(path, error) from error
    external = [os.fspath(file) for file in check_model(path)]  # checked before what it names is read
    digest = hashlib.sha256()
    for file in (path, *external):
        try:
            with open(file, "rb") as opened:
                settled &= _settle(opened.fileno(), now)
                before = file_state(opened.fileno())
                data = opened.read()
                after = file_state(opened.fileno())
        except OSError as error:
            raise model_file_error(file, error) from error
        if not states.setdefault(file, before) == before == after:
            return None
        if external:
            digest.update(f"{os.path.relpath(file, os.path.dirname(path)) if file != path else ''}\0".encode())
            digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return Content(digest.hexdigest(), states, settled)


def _settle(file: int, now: int) -> bool:
    """Whether a file has settled, written back to its disk where that is needed."""
    state = file_state(file)
    if files.has_settled(state, now):
        return True
    try:
        os.fsync(file)
    except OSError:  # a file system that cannot
        return False
    return files.has_settled(state, now, written_back=True)


def forget(notes: Path, *, all_of_them: bool) -> None:
    """Remove what is remembered of models that are gone, or everything."""
    for note in notes.glob("*.json"):
        try:
            gone = all_of_them or not os.path.exists(json.loads(note.read_bytes())["model"])
        except (OSError, ValueError, KeyError, TypeError):
            gone = True
        if gone:
            note.unlink(missing_ok=True)


def _remembered(note: Path, path: str) -> Content | None:
    try:
        facts = json.loads(note.read_bytes())
        states = {str(file): state for file, state in facts["states"].items()}
        if path not in states or any(file_state(file) != state for file, state in states.items()):
            return None
        return Content(str(facts["sha256"]), states)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
