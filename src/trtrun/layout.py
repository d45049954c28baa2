"""Layouts: tensors that do not lie in memory as a row-major array of whole bytes.

TensorRT describes every I/O format by the same three facts: the strides of its elements, the dimension along which
several values form one element (a vector), and how many. ``kHWC8`` of a [1, 3, 4, 4] tensor is one element of eight
values per pixel, five of them padding. So one rule reads and writes all formats, and none is known by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .arrays import Host
from .tensor_spec import Shape

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Layout(ABC):
    """How a tensor of one shape lies in ``nbytes`` bytes of memory."""

    nbytes: int

    @abstractmethod
    def write(self, memory: Bytes, array: Host) -> None:
        """Put an array of the tensor's shape into memory."""

    @abstractmethod
    def read(self, memory: Bytes) -> Host:
        """A new array of the tensor's shape from memory."""


class PackedLayout(Layout):
    """4-bit values, two to a byte, the first in the low half; NumPy (ml_dtypes) keeps each in a byte of its own."""

    def __init__(self, shape: Shape, dtype: np.dtype[Any]) -> None:
        self._shape = shape
        self._dtype = dtype
        self._count = math.prod(shape)
        self.nbytes = (self._count + 1) // 2

    def write(self, memory: Bytes, array: Host) -> None:
        values = np.zeros(2 * self.nbytes, np.uint8)
        values[: self._count] = np.ascontiguousarray(array, self._dtype).reshape(-1).view(np.uint8) & 0xF
        memory[: self.nbytes] = values[::2] | values[1::2] << 4

    def read(self, memory: Bytes) -> Host:
        packed = memory[: self.nbytes]
        values = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)[: self._count]
        if self._dtype.name == "int4":  # two's complement
            result: Host = ((values.astype(np.int8) ^ 8) - 8).astype(self._dtype)
        else:
            result = values.view(self._dtype)
        return result.reshape(self._shape)


class StridedLayout(Layout):
    """Any of TensorRT's I/O formats.

    Args:
        strides: distance between elements along each dimension, in elements.
        vector_axis: the dimension along which values form vectors; -1 for none.
        vector: values per element.
    """

    def __init__(
        self, shape: Shape, dtype: np.dtype[Any], strides: Shape, vector_axis: int = -1, vector: int = 1
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._axis = vector_axis
        self._vector = vector if vector_axis >= 0 else 1
        elements = list(shape)
        if vector_axis >= 0:
            elements[vector_axis] = -(-shape[vector_axis] // vector)
        self._elements = (*elements, self._vector)
        size = self._vector * dtype.itemsize
        self._strides = (*(stride * size for stride in strides), dtype.itemsize)
        last = sum((count - 1) * stride for count, stride in zip(elements, strides, strict=True))
        self.nbytes = (last + 1) * size if all(elements) else 0

    def write(self, memory: Bytes, array: Host) -> None:
        if not self.nbytes:
            return
        memory[: self.nbytes] = 0  # padding between and behind the values
        source = np.asarray(array, self._dtype)
        if self._axis >= 0:
            padding = [(0, 0)] * source.ndim
            padding[self._axis] = (0, self._elements[self._axis] * self._vector - source.shape[self._axis])
            padded = np.pad(source, padding)
            split = padded.reshape(*self._elements[: self._axis + 1], self._vector, *padded.shape[self._axis + 1 :])
            source = np.moveaxis(split, self._axis + 1, -1)
        else:
            source = source[..., None]
        np.copyto(self._view(memory), source)

    def read(self, memory: Bytes) -> Host:
        if not self.nbytes:
            return np.empty(self._shape, self._dtype)
        view = self._view(memory)
        if self._axis < 0:
            plain: Host = view[..., 0].copy()
            return plain
        merged = np.moveaxis(view, -1, self._axis + 1)
        merged = merged.reshape(*merged.shape[: self._axis], -1, *merged.shape[self._axis + 2 :])
        wanted = [slice(None)] * merged.ndim
        wanted[self._axis] = slice(self._shape[self._axis])
        return np.ascontiguousarray(merged[tuple(wanted)])

    def _view(self, memory: Bytes) -> Host:
        flat = memory[: self.nbytes].view(self._dtype)
        return np.lib.stride_tricks.as_strided(flat, self._elements, self._strides)
