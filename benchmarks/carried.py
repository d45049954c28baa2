"""Engines and models in few bytes, to be carried to a machine without network.

An engine holds the weights of the graph it was built from, as they are or with their axes in another order. So it is
kept as the places of those weights and whatever else there is, and put together again from the graph; its SHA-256 says
that every byte is the one that the builder wrote. fp32 numbers compress better as four planes of bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]

_LEAST = 256  # bytes of a weight that is looked for
_FAST = 1  # preset of LZMA: mantissas do not compress, whatever is tried


def pack(data: bytes) -> bytes:
    whole = len(data) // 4 * 4
    planes = np.frombuffer(data, np.uint8, whole).reshape(-1, 4).T.tobytes() + data[whole:]
    return lzma.compress(planes, preset=_FAST)


def unpack(packed: bytes) -> bytes:
    planes = lzma.decompress(packed)
    whole = len(planes) // 4 * 4
    data = np.frombuffer(planes, np.uint8, whole).reshape(4, -1).T.tobytes()
    return data + planes[whole:]


def pack_engine(engine: bytes, graph: bytes) -> bytes:
    """What is needed beside the graph to have the engine again, byte by byte."""
    rest = bytearray(engine)
    places = []
    for index, weight in enumerate(_weights(graph)):
        for order in itertools.permutations(range(weight.ndim)):
            data = np.ascontiguousarray(weight.transpose(order)).tobytes()
            at = engine.find(data[:_LEAST])
            if at >= 0 and engine[at : at + len(data)] == data:
                rest[at : at + len(data)] = bytes(len(data))
                places.append((index, order, at))
                break
    head = json.dumps({"sha256": hashlib.sha256(engine).hexdigest(), "places": places}).encode()
    return lzma.compress(struct.pack("<I", len(head)) + head + rest, preset=_FAST)


def unpack_engine(packed: bytes, graph: bytes) -> bytes:
    """Raises ValueError where the graph is not the one that the engine was packed with."""
    data = lzma.decompress(packed)
    (size,) = struct.unpack_from("<I", data)
    head = json.loads(data[4 : 4 + size])
    engine = bytearray(data[4 + size :])
    weights = list(_weights(graph))
    for index, order, at in head["places"]:
        weight = np.ascontiguousarray(weights[index].transpose(order)).tobytes() if index < len(weights) else b""
        engine[at : at + len(weight)] = weight
    if hashlib.sha256(engine).hexdigest() != head["sha256"]:
        raise ValueError("the engine cannot be put together from this graph")
    return bytes(engine)


def _weights(graph: bytes) -> Iterator[Array]:
    proto = onnx.load_model_from_string(graph).graph
    constants = [attribute.t for node in proto.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*proto.initializer, *constants):
        array = numpy_helper.to_array(tensor)
        if array.nbytes >= _LEAST:
            yield array
