"""How to build an engine: optimization profiles, target and limits, as one frozen value."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from ..errors import BuildError, ShapeError
from ..flavor import FlavorName
from ..tensor_spec import Shape, ShapeRange

Profile = Mapping[str, ShapeRange]

_LONGEST = 1000  # characters of a shape
_CAPABILITY = re.compile(r"(?:sm)?(\d+)\.?(\d)")
_LARGEST_DIMENSION = 2**31 - 1  # of TensorRT-RTX; the full one takes no tensor of more elements


@dataclass(frozen=True)
class BuildOptions:
    """Options of one build, for ``load(…, build_options=)`` and ``build(…, options=)``.

    The defaults build an engine for every GPU that the builder supports, with the builder's own defaults::

        BuildOptions(fp16=True, profiles=({"images": ShapeRange(min=(1, 3, 640, 640), opt=…, max=…)},))

    Attributes:
        profiles: the optimization profiles, each a mapping from the names of all dynamic inputs to the
            :class:`~trtrun.ShapeRange` that it accepts. Without any, a dynamic batch gets one of 1 to 32, tuned for 8.
        specialize: batch sizes that get a profile, and so kernels, of their own.
        input_shapes: by input name, in place of what the file declares; -1 where dynamic.
        flavor: the builder, ``"tensorrt_rtx"`` or ``"tensorrt"``; None is the first installed, in this order.
        compute_capabilities: TensorRT-RTX: the GPUs to build for, like ``"sm_89"`` or ``"8.9"``; empty builds for all.
        optimization_level: 0 (fastest build) to 5 (fastest engine); None is the builder's default.
        workspace: bytes of scratch memory that layers may use; None is all that the GPU has.
        tf32: fp32 matrix products and convolutions may round their inputs to TF32's 10-bit mantissa. TensorRT-RTX
            always does, so without it each is written as a sum of three, which takes about twice as long.
        plugins: paths of plugin libraries to load before parsing.
        refittable: the engine takes new weights by name; see :meth:`~trtrun.Engine.refit`.
        weight_streaming: weights may stay on the host; see ``weight_streaming_budget`` of :class:`~trtrun.Engine`.
        debug_tensors: tensors inside the network that can be read when it runs; see :mod:`trtrun.debug_tensors`.
        version_compatible: full TensorRT: later versions load the plan, with the lean runtime inside it.
        hardware_compatible: full TensorRT: ``"ampere_plus"`` or ``"same_compute_capability"``.
        timing_cache: full TensorRT: file of kernel timings, read and written.
        outputs: tensors of the graph to be the engine's outputs instead of the model's.
        simplify: fold constants and redundant nodes first.
        fp16: convert the graph to fp16 first, sensitive operators left in fp32: networks are strongly typed, so the
            graph decides about precision. For int8 and fp8 see ``trtrun quantize``.
        bf16: the same in bf16, instead.
        keep_io: inputs and outputs stay fp32 then.
        keep_fp32: operators or names of nodes to leave in fp32 then, besides the sensitive ones.
        detailed: keep layer details for ``trtrun inspect`` and ``trtrun profile`` (ProfilingVerbosity.DETAILED).
    """

    profiles: tuple[Profile, ...] = ()
    specialize: tuple[int, ...] = ()
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    flavor: FlavorName | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace: int | None = None
    tf32: bool = True
    plugins: tuple[str | os.PathLike[str], ...] = ()
    refittable: bool = False
    weight_streaming: bool = False
    debug_tensors: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: str | None = None
    timing_cache: str | os.PathLike[str] | None = None
    outputs: tuple[str, ...] = ()
    simplify: bool = False
    fp16: bool = False
    bf16: bool = False
    keep_io: bool = True
    keep_fp32: tuple[str, ...] = ()
    detailed: bool = False

    @classmethod
    def of(cls, options: BuildOptions | None) -> BuildOptions:
        """What a caller gave, checked; the defaults for None. Raises BuildError."""
        if options is None:
            return cls()
        if not isinstance(options, cls):
            example = "BuildOptions(**options)" if isinstance(options, Mapping) else "BuildOptions(fp16=True)"
            raise BuildError(f"build options are a {type(options).__name__}. Pass trtrun.{example}.")
        options.check()
        return options

    def check(self) -> None:
        """Raise BuildError for options that contradict each other, would have no effect, or are beyond TensorRT."""
        self._check_types()
        if self.fp16 and self.bf16:
            raise BuildError("fp16 and bf16 exclude each other. Choose one.")
        if not (self.fp16 or self.bf16) and (self.keep_fp32 or not self.keep_io):
            what = "keep_fp32" if self.keep_fp32 else "converting inputs and outputs (keep_io=False)"
            raise BuildError(f"{what} has an effect only with fp16 or bf16. Choose one of them, or leave it out.")
        for title, values in (
            ("outputs", [*self.outputs]),
            ("compute_capabilities", [*self.targets]),
            ("specialize", [str(batch) for batch in self.specialize]),
        ):
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise BuildError(f"{title} names {', '.join(twice)} more than once. Name each once.")
        if any(not isinstance(batch, Integral) or batch < 1 for batch in self.specialize):
            raise BuildError(f"specialize is {list(self.specialize)}, and batch sizes are whole numbers, 1 or more.")
        # An engine tuned for nothing would take nothing else.
        ranges = [(name, given) for profile in self.profiles for name, given in profile.items()]
        shapes = [(name, shape, least) for name, r in ranges for shape, least in ((r.min, 0), (r.opt, 1), (r.max, 1))]
        shapes += [(name, shape, -1) for name, shape in self.input_shapes.items()]
        shapes += [("specialize", self.specialize, 1)]
        for name, shape, least in shapes:
            if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
                raise BuildError(f"{name!r} is given {shape!r}. Pass a tuple of whole numbers, like (1, 3, 224, 224).")
            if any(not isinstance(size, Integral) or not least <= size <= _LARGEST_DIMENSION for size in shape):
                raise BuildError(
                    f"{name!r} is given {list(shape)}; each is a whole number from {least} to {_LARGEST_DIMENSION:,}."
                )
        if self.workspace is not None and not 0 <= self.workspace < 2**63:
            raise BuildError(f"workspace is {self.workspace:,} bytes; it is 0 to 2⁶³ - 1.")

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities in one spelling, TensorRT's: ``sm_89``."""
        texts = [str(given).lower() for given in self.compute_capabilities]
        found = [_CAPABILITY.fullmatch(text.replace("_", "")) for text in texts]
        return tuple(f"sm_{m[1]}{m[2]}" if m else text for m, text in zip(found, texts, strict=True))

    def _check_types(self) -> None:
        """A lone string or mapping where several are expected would be taken apart silently."""
        several = ("profiles", "specialize", "compute_capabilities", "plugins", "debug_tensors", "outputs", "keep_fp32")
        for title in several:
            value = getattr(self, title)
            if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
                one = "{…}" if isinstance(value, Mapping) else repr(value)
                raise BuildError(f"{title} is a {type(value).__name__}. Pass a tuple, also of one: {title}=({one},).")
        for given in self.compute_capabilities:
            if not isinstance(given, (str, float)):
                raise BuildError(f"a compute capability is {given!r}. Pass text, like 'sm_89' or '8.9'.")
        for profile in self.profiles:
            if not isinstance(profile, Mapping) or not all(isinstance(r, ShapeRange) for r in profile.values()):
                raise BuildError(
                    f"a profile is {profile!r}. Pass a mapping from input name to the range that it accepts: "
                    '{"images": trtrun.ShapeRange(min=(1, 3, 640, 640), opt=(8, 3, 640, 640), max=(32, 3, 640, 640))}.'
                )
        if not isinstance(self.input_shapes, Mapping):
            raise BuildError(
                f"input_shapes is a {type(self.input_shapes).__name__}. Pass a mapping from input name to shape: "
                'input_shapes={"images": (-1, 3, 224, 224)}.'
            )

    def key(self) -> str:
        """The options as canonical text, for cache keys."""
        profiles = [{name: [r.min, r.opt, r.max] for name, r in sorted(p.items())} for p in self.profiles]
        plugins = [os.fspath(plugin) for plugin in self.plugins]
        data: dict[str, Any] = {
            "profiles": profiles,
            "specialize": self.specialize,
            "input_shapes": {name: list(shape) for name, shape in sorted(self.input_shapes.items())},
            "flavor": self.flavor,
            "compute_capabilities": self.targets,
            "optimization_level": self.optimization_level,
            "workspace": self.workspace,
            "tf32": self.tf32,
            "plugins": plugins,
            "refittable": self.refittable,
            "weight_streaming": self.weight_streaming,
            "debug_tensors": self.debug_tensors,
            "detailed": self.detailed,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "timing_cache": None if self.timing_cache is None else os.fspath(self.timing_cache),
            "outputs": self.outputs,
            "simplify": self.simplify,
            "fp16": self.fp16,
            "bf16": self.bf16,
            "keep_io": self.keep_io,
            "keep_fp32": self.keep_fp32,
        }
        return json.dumps(data, sort_keys=True, default=int)  # NumPy's whole numbers


def parse_shapes(texts: Sequence[str]) -> tuple[Profile, ...]:
    """Optimization profiles from ``name=MIN:OPT:MAX`` texts, dimensions joined by ``x``.

    ``images=1x3x640x640:8x3x640x640:32x3x640x640`` is a range; ``images=8x3x640x640`` is that one shape. Several
    texts of different inputs belong to one profile; an input named again begins the next profile.

    Raises BuildError, showing the text, when one cannot be read, its bounds are not in order, or one is too small.
    """
    profiles: list[dict[str, ShapeRange]] = []
    for text in texts:
        name, _, ranges = text.rpartition("=")
        shapes = [parse_shape(part, text) for part in ranges.split(":")]
        if not name or len(shapes) not in (1, 3):
            raise BuildError(
                f"cannot read --shape {text!r}: write NAME=MIN:OPT:MAX like images=1x3x224x224:8x3x224x224"
                ":32x3x224x224, or NAME=SHAPE for one fixed shape."
            )
        low, opt, high = shapes if len(shapes) == 3 else shapes * 3
        try:
            found = ShapeRange(low, opt, high)
        except ShapeError as error:
            raise BuildError(f"--shape {text!r}: {error}") from error
        if min(low, default=0) < 0:
            raise BuildError(f"--shape {text!r}: dimensions of a profile are 0 or more.")
        if min(opt, default=1) < 1:
            raise BuildError(
                f"--shape {text!r}: only MIN may be 0, for requests that are empty; an engine is tuned for others."
            )
        if not profiles or name in profiles[-1]:
            profiles.append({})
        profiles[-1][name] = found
    return tuple(profiles)


def parse_shape(text: str, context: str) -> Shape:
    """``"1x3x-1x-1"`` as a tuple; the empty text is the shape of a scalar."""
    if not re.fullmatch(r"(-?\d+(x-?\d+)*)?", text):
        raise BuildError(
            f"cannot read {text!r} in {context!r} as a shape: write dimensions joined by x, like 1x3x224x224."
        )
    shape = tuple(map(int, text.split("x"))) if text and len(text) < _LONGEST else ()
    if len(text) >= _LONGEST or any(size > _LARGEST_DIMENSION for size in shape):
        raise BuildError(
            f"{text[:_LONGEST]!r} in {context[:_LONGEST]!r}: no dimension can exceed {_LARGEST_DIMENSION:,}."
        )
    return shape


def parse_bytes(text: str) -> int:
    """``"2GiB"``, ``"2G"`` (the same, as trtexec reads it), ``"2GB"`` or ``"1000000"`` as a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B?|B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise BuildError(f"cannot read {text!r} as a size: write bytes, or a number with KiB, MiB or GiB.")
    unit = (match[2] or "B").upper()
    power = " KMGT".index(unit[0]) if unit[0] != "B" else 0
    size = float(match[1]) * (1000 if unit.endswith("B") and "I" not in unit else 1024) ** power
    if size >= 2**63:
        raise BuildError(f"{text[:_LONGEST]!r} is more bytes than any memory has.")
    return int(size)


def closest(unknown: Iterable[str], known: Collection[str]) -> str:
    """Of the names of a network, which are many, those that may have been meant, as half a sentence."""
    near = [found for name in unknown for found in get_close_matches(name, known, n=5, cutoff=0.0)]
    return f"of {len(known)} the closest are {list(dict.fromkeys(near))}"
