"""What several commands have in common: their options, and what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..runner import Runner

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[int, typer.Option("--device", help="Ordinal of the GPU.")]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="Plugin library to load first.")]
Model = Annotated[Path, typer.Option("--model", "-m", help="A plan, an ONNX file or a bundle.")]
HeadName = Annotated[str | None, typer.Option("--head", help="The decoder, where outputs and metadata do not say.")]
InputShapes = Annotated[
    list[str] | None,
    typer.Option("--input-shape", help="NAME=SHAPE: replace what an ONNX file declares, like images=1x3x640x640."),
]
InputSize = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT of an input that takes several.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Pictures per request.")]
Labels = Annotated[Path | None, typer.Option("--labels", help="Text file with one class name per line.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="NAME=SHAPE of a dynamic input, like images=8x3x224x224; the shape tuned for unless given.",
    ),
]
InputFiles = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", help="NAME=FILE.npy: these values instead of random ones."),
]


def why(error: OSError) -> str:
    """Why a file cannot be read, without its name and the number of the error."""
    return "it does not exist" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))


def parse_named_shapes(texts: Sequence[str], option: str) -> dict[str, tuple[int, ...]]:
    """``NAME=SHAPE`` texts as shapes by name. Raises ShapeError, showing the text."""
    from ..building.options import parse_shape
    from ..errors import ShapeError

    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        if not name or not equals:
            raise ShapeError(f"cannot read {option} {text!r}: write NAME=SHAPE, like images=8x3x224x224.")
        shapes[name] = parse_shape(dims, text)
    return shapes


def load_model(
    model: Path,
    device: int,
    plugins: Sequence[Path] | None,
    input_shape: Sequence[str] | None,
    size: tuple[int, int] | None = None,
    *,
    pictures: bool = True,
) -> Runner:
    """What runs the model, an ONNX file with other input shapes where they are given.

    Where it takes ``pictures`` of any size, an engine is built for one: ``size``, else what the metadata say. Raises
    InputError for input shapes of what is built already, and what :func:`trtrun.load` raises.
    """
    from ..building.options import BuildOptions
    from ..errors import InputError
    from ..plan import is_onnx_file
    from ..predictor import load

    shapes = parse_named_shapes(input_shape or (), "--input-shape")
    is_onnx = is_onnx_file(model)
    if shapes and not is_onnx:
        raise InputError(
            f"--input-shape replaces what an ONNX file declares, and {str(model)!r} is none. Build it for that shape, "
            "or give the ONNX file."
        )
    if pictures and is_onnx:
        shapes |= picture_shapes(model, shapes, size)
    return load(model, device=device, plugins=plugins or (), build_options=BuildOptions(input_shapes=shapes))


def picture_shapes(
    model: Path, declared: Mapping[str, tuple[int, ...]], size: tuple[int, int] | None
) -> dict[str, tuple[int, ...]]:
    """The shape of an ONNX file's pictures in this size (width, height), else in its metadata's, where it takes any.

    ``declared`` shapes stand in place of the file's.
    """
    from ..building.onnx_file import proto_metadata, read_model
    from ..building.rewrites import graph_inputs
    from ..vision.heads import read_metadata
    from ..vision.task import is_nhwc

    proto = read_model(model)
    size = size or read_metadata(proto_metadata(proto)).size
    shapes: dict[str, tuple[int, ...]] = {}
    if size is None:
        return shapes
    for value in graph_inputs(proto.graph):
        dims = value.type.tensor_type.shape.dim
        shape = [*declared.get(value.name, (dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims))]
        if len(shape) == 4:
            height = 1 if is_nhwc(shape) else 2
            if -1 in shape[height : height + 2]:
                shape[height : height + 2] = size[::-1]
                shapes[value.name] = tuple(shape)
    return shapes


def parse_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``NAME=LOW:HIGH`` texts as bounds by name. Raises InputError, showing the text."""
    from ..errors import InputError

    ranges: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, _, bounds = text.rpartition("=")
        low, _, high = bounds.partition(":")
        try:
            if not name:
                raise ValueError("no name")
            ranges[name] = (float(low), float(high))
        except ValueError as error:
            raise InputError(f"cannot read --range {text!r}: write NAME=LOW:HIGH, like images=0:255.") from error
    return ranges


def read_npz(path: Path | None) -> dict[str, Any] | None:
    """The arrays of a .npz file by name. Raises InputError when it cannot be read."""
    import zipfile

    import numpy as np

    from ..errors import InputError

    if path is None:
        return None
    magic = np.lib.format.MAGIC_PREFIX
    try:
        with path.open("rb") as opened:
            head = opened.read(len(magic))
            opened.seek(0)
            if head.startswith(b"PK"):
                with np.load(opened, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {why(error)}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"cannot read {str(path)!r} as a .npz archive: {error}. Write one with numpy.savez(path, **inputs)."
        ) from error
    if head == magic:
        raise InputError(
            f"{str(path)!r} is a .npy file, which holds one array without the name of its input. A .npz file has "
            f"names: numpy.savez('inputs.npz', NAME=numpy.load({str(path)!r}))"
        )
    raise InputError(
        f"{str(path)!r} is no .npz file, which holds an array per input name: numpy.savez('inputs.npz', NAME=array) "
        "writes one."
    )


def read_arrays(texts: list[str], names: list[str]) -> dict[str, Any]:
    """The arrays of ``NAME=FILE.npy`` texts, or of ``FILE.npy`` where there is one name only."""
    import numpy as np

    from ..errors import InputError, InputNameError

    magic = np.lib.format.MAGIC_PREFIX
    arrays: dict[str, Any] = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        if not name:
            if len(names) != 1:
                raise InputNameError(f"the model has {len(names)} inputs {names}: write --input NAME={text}.")
            name = names[0]
        if name in arrays:
            raise InputNameError(f"input {name!r} was given twice.")
        try:
            with open(file, "rb") as opened:
                is_array = opened.read(len(magic)) == magic
                opened.seek(0)
                arrays[name] = np.load(opened, allow_pickle=False) if is_array else None
        except OSError as error:
            raise InputError(f"cannot read {file!r}: {why(error)}.") from error
        except ValueError as error:
            raise InputError(f"cannot read {file!r} as a .npy array: {error}") from error
        if not is_array:
            raise InputError(
                f"{file!r} is no .npy file, which holds one array: numpy.save(path, array) writes one. For pictures "
                "there are trtrun detect, classify, segment and pose."
            )
    return arrays


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` as numbers. Raises InputError, showing the text."""
    from ..errors import InputError

    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"cannot read --size {text!r}: write WIDTHxHEIGHT, like 640x480.")
    return int(width), int(height)


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises InputError when it cannot be read."""
    from ..errors import InputError

    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise InputError(f"cannot read the names in {str(path)!r}: {why(error)}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the names in {str(path)!r}: {error}.") from error


def read_key(path: Path, which: str) -> bytes:
    """The bytes of a key's PEM file. Raises BundleError when it cannot be read."""
    from ..errors import BundleError

    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"cannot read the {which} key {str(path)!r}: {why(error)}. A pair of keys is made by: trtrun bundle keygen "
            "private.pem public.pem"
        ) from error


def need_gpu() -> None:
    """Raise NoGpuError where there is none to measure, before a model is asked for that would not help either."""
    from ..cuda.device import gpu_count, why_no_gpu
    from ..errors import NoGpuError

    if gpu_count() == 0:
        raise NoGpuError(
            f"an engine is measured on an NVIDIA GPU, and {why_no_gpu()}. Install or update the driver, or measure on "
            "the machine where the engine will run."
        )


def refuse_idle(options: dict[str, bool], why: str) -> None:
    """Raise InputError that names the options which were given, where none of them has an effect."""
    from ..errors import InputError

    if idle := [option for option, given in options.items() if given]:
        raise InputError(f"{', '.join(idle)}: of no effect {why}. Leave out what has none.")


def write_page(path: Path, page: str, progress: Console) -> None:
    """Write a report and say so beside the command's own output."""
    from ..building.files import write_atomic

    write_atomic(path, page.encode())
    progress.print(f"wrote {path}", style="dim")
