"""What an engine says of one input or output, and the checks that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import DtypeError, InputNameError, ShapeError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that one optimization profile accepts for one input. Raises ShapeError for bounds out of order."""

    min: Shape
    opt: Shape  # the shape the builder tuned for
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max) or not all(
            low <= opt <= high for low, opt, high in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise ShapeError(f"a range of {self}: every dimension must satisfy min <= opt <= max, with equal ranks.")

    def __contains__(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return f"{shape_text(self.min)}…{shape_text(self.opt)}…{shape_text(self.max)}"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine, in TensorRT's own terms.

    ``shape`` has -1 where a dimension is dynamic. ``profiles`` holds one :class:`ShapeRange` per optimization
    profile for a dynamic input, and is empty otherwise. ``location`` is where TensorRT wants the data:
    ``"host"`` for shape tensors. ``data_dependent`` marks an output whose shape is known only after running.
    ``format`` is TensorRT's description of an I/O format other than row-major linear, and empty for that one; arrays
    are converted on the host.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    profiles: tuple[ShapeRange, ...] = ()
    location: Literal["device", "host"] = "device"
    data_dependent: bool = False
    format: str = ""

    @property
    def is_dynamic(self) -> bool:
        return -1 in self.shape

    @property
    def max_shape(self) -> Shape | None:
        """The largest shape any profile accepts; the shape itself when static; None when there is no bound."""
        if not self.is_dynamic:
            return self.shape
        if not self.profiles:
            return None
        return max((p.max for p in self.profiles), key=lambda s: int(np.prod(s, dtype=np.int64)))

    def check_shape(self, shape: Shape) -> None:
        """Raise ShapeError unless ``shape`` has the right rank and lies in the range of some profile."""
        if len(shape) != len(self.shape):
            hint = ""
            if len(shape) + 1 == len(self.shape):
                in_order = self._in_order((1, *shape))
                hint = f" A single item needs its batch dimension: array[None]{in_order and f'.{in_order}'}."
            raise ShapeError(
                f"input {self.name!r} has rank {len(self.shape)} ({shape_text(self.shape)}), "
                f"got rank {len(shape)} ({shape_text(shape)}).{hint}"
            )
        for axis, (want, got) in enumerate(zip(self.shape, shape, strict=True)):
            if want not in (-1, got):
                remedy = "Resize the array, or take a model that was exported or built for this shape."
                if in_order := self._in_order(shape):
                    remedy = f"Bring its axes into the model's order: array.{in_order}."
                raise ShapeError(
                    f"input {self.name!r} has shape {shape_text(self.shape)}, got {shape_text(shape)}: "
                    f"dimension {axis} must be {want}, not {got}. {remedy}"
                )
        if self.profiles and not any(shape in profile for profile in self.profiles):
            ranges = "; ".join(
                f"profile {i}: {shape_text(p.min)} to {shape_text(p.max)}" for i, p in enumerate(self.profiles)
            )
            raise ShapeError(
                f"input {self.name!r} got shape {shape_text(shape)}, outside every optimization profile ({ranges}). "
                "Pass a shape inside a range, or rebuild the engine with a profile that holds it."
            )

    def _in_order(self, shape: Shape) -> str:
        """How pictures with channels last, or first, come into the order that is wanted; empty where that is not it."""

        def fits(shape: Shape) -> bool:
            return all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True))

        if len(shape) != 4 or fits(shape):
            return ""
        ways = [way for way in ((0, 3, 1, 2), (0, 2, 3, 1)) if fits(tuple(shape[axis] for axis in way))]
        return f"transpose{ways[0]}" if ways else ""

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Raise DtypeError unless ``dtype`` converts to the engine's without changing any value."""
        if dtype.hasobject:
            raise DtypeError(
                f"input {self.name!r} is an array of Python objects. Pass numbers of one dtype, "
                "for example np.stack(list_of_arrays)."
            )
        if not can_cast_exactly(dtype, self.dtype):
            raise DtypeError(
                f"input {self.name!r} is {self.dtype.name}, got {dtype.name}: converting could change values, "
                f"so trtrun does not do it silently. Convert it yourself: array.astype({_dtype_code(self.dtype)})."
            )

    def __str__(self) -> str:
        text = f"{self.name}: {self.dtype.name} {shape_text(self.shape)}"
        if self.profiles:
            text += " (" + "; ".join(str(p) for p in self.profiles) + ")"
        if self.location == "host":
            text += " on the host"
        if self.data_dependent:
            text += ", shape known after running"
        if self.format:
            text += f", {self.format}"
        return text


class TensorSpecs(Mapping[str, TensorSpec]):
    """The inputs or outputs of an engine: a mapping from tensor name to spec, in engine order."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}

    def __getitem__(self, name: str) -> TensorSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return "{" + ", ".join(map(str, self._specs.values())) + "}"

    def bind(self, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Pair call arguments with tensor names: positional ones in engine order, the rest by name.

        Raises InputNameError for too many or repeated names; :meth:`check_names` finds unknown and missing ones.
        """
        if not named and len(args) == len(self._specs):
            return dict(zip(self._specs, args, strict=True))
        names = list(self._specs)
        if len(args) > len(names):
            raise InputNameError(f"the engine has {len(names)} input(s) {names}, got {len(args)} positional arrays.")
        bound = dict(zip(names, args, strict=False))
        for name, value in named.items():
            if name in bound:
                raise InputNameError(f"input {name!r} was given twice: by position and by name.")
            bound[name] = value
        return bound

    def check_names(self, given: Mapping[str, Any], kind: str = "inputs") -> None:
        """Raise InputNameError unless ``given`` is a mapping with each of these ``kind`` and nothing else."""
        if not hasattr(given, "keys"):
            by_name = ", ".join(f"{name!r}: array" for name in self)
            by_call = ", or call the model as model(array)" if kind == "inputs" else ""
            raise InputNameError(
                f"the {kind} come as a mapping from name to array, got a {type(given).__name__}. "
                f"Pass {{{by_name}}}{by_call}."
            )
        if given.keys() == self._specs.keys():
            return
        unknown = sorted(map(str, given.keys() - self._specs.keys()))
        missing = [name for name in self._specs if name not in given]
        problems = [f"unknown: {unknown}"] if unknown else []
        problems += [f"missing: {missing}"] if missing else []
        raise InputNameError(f"the {kind} do not match the model's ({'; '.join(problems)}), which are: {self!r}.")


def is_whole(dtype: np.dtype[Any]) -> bool:
    """True for integers and booleans; those of ml_dtypes have the ``kind`` of its floats, V."""
    return dtype.kind in "iub" or dtype.name.startswith(("int", "uint"))


def can_cast_exactly(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """True when every value of ``source`` is a value of ``target``.

    NumPy's own ``safe`` rule calls int64 → float64 safe although it rounds above 2**53, so integers into
    floating point are judged here by the mantissa.
    """
    if source == target:
        return True
    if source.kind in "iu" and target.kind == "f":
        bits = source.itemsize * 8 - (source.kind == "i")
        return bool(bits <= np.finfo(target).nmant + 1)
    return bool(np.can_cast(source, target, casting="safe"))


def to_shape(dims: Any) -> Shape:
    """TensorRT's ``Dims`` as a tuple of ints, by a slice: to iterate ends in an exception, at 8 times the cost."""
    shape: Shape = dims[:]
    return shape


def shape_text(shape: Sequence[object]) -> str:
    """A shape as messages write it; -1 is any size."""
    return "×".join(map(str, shape)) if shape else "scalar"


def _dtype_code(dtype: np.dtype[Any]) -> str:
    return f"np.{dtype.name}" if dtype.kind in "biufc" and dtype.isbuiltin == 1 else f"ml_dtypes.{dtype.name}"
