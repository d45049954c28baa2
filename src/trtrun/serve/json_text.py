"""JSON of any size that does not hold up the other threads of the process.

Python's JSON parser and encoder keep the interpreter to themselves until they are done, which for a large tensor takes
a second. Here arrays are read and written in pieces of a millisecond, between which others get their turn.
"""

from __future__ import annotations

import json
import json.decoder
import json.scanner
import re
from collections.abc import Callable
from typing import Any

import numpy as np

PIECE = 1 << 16  # characters or numbers
_OPENING = re.compile(r"\[{0,100}")
_PLAIN = re.compile(r'[^\[\]{}"]*')


def loads(data: bytes | bytearray | memoryview) -> Any:
    """The value of a JSON text; ValueError and RecursionError as ``json.loads`` raises them."""
    data = bytes(data)
    if len(data) <= PIECE:
        return json.loads(data)
    return _Decoder().decode(data.decode(json.detect_encoding(data), "surrogatepass"))


def weight(data: bytes | bytearray, end: int) -> int:
    """Bytes of memory at most that reading the first ``end`` of these as JSON takes beside them: text, numbers, lists
    and objects of Python's."""
    values, lists, objects = (data.count(one, 0, end) for one in (b",", b"[", b"{"))
    return 7 * min(end, len(data)) + 33 * values + 100 * lists + 250 * objects


class _Decoder(json.JSONDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.parse_array = _array
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def _array(begin: tuple[str, int], scan_once: Callable[[str, int], Any]) -> tuple[list[Any], int]:
    """The values of an array that begins here, and where it ends."""
    text, start = begin
    values: list[Any] = []
    while True:
        stop = _PLAIN.match(text, start, start + PIECE).end()  # type: ignore[union-attr]
        if text[stop : stop + 1] == "]":
            cut = stop
        elif stop - start == PIECE:
            cut = text.rfind(",", start, stop)
        else:  # rows: their end looks like their beginning
            depth = _OPENING.match(text, stop).end() - stop  # type: ignore[union-attr]
            found = text.rfind("]" * depth + ",", stop, start + PIECE) if depth else -1
            cut = found + depth if found >= 0 else -1
        piece = text[start : max(cut, start)]
        try:  # what ends with a comma and is values for itself, is values of the array
            if not piece.strip():
                raise ValueError("nothing")
            values += json.loads(f"[{piece}]")
        except ValueError:
            # What is left over is larger, text, or no JSON, which the standard library says best.
            rest, end = json.decoder.JSONArray((text, start), scan_once)  # type: ignore[attr-defined]
            return (values + rest, end) if rest or not values else json.decoder.JSONArray(begin, scan_once)  # type: ignore[attr-defined]
        if cut == stop and text[stop : stop + 1] == "]":
            return values, stop + 1
        start = cut + 1


def numbers(array: np.ndarray[Any, Any]) -> bytes:
    """A flat array as a JSON array."""
    parts = (json.dumps(array[at : at + PIECE].tolist())[1:-1] for at in range(0, len(array), PIECE))
    return f"[{', '.join(parts)}]".encode()


def to_array(data: Any, convert: Callable[[Any], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Nested lists as an array, of which ``convert`` makes pieces. Raises what it raises, and ValueError."""
    if not isinstance(data, list) or _count(data) <= PIECE:
        return convert(data)
    if len(data) > PIECE:
        return np.concatenate([to_array(data[at : at + PIECE], convert) for at in range(0, len(data), PIECE)])
    return np.stack([to_array(row, convert) for row in data])


def _count(data: Any) -> int:
    """Numbers in nested lists, as far as their first elements tell."""
    count = 1
    while isinstance(data, list) and data:
        count *= len(data)
        data = data[0]
    return count
