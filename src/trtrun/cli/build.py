"""``trtrun build``: ONNX to engine."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BuildError
from .console import plain_console
from .options import Plugins, parse_named_shapes, parse_ranges, read_npz, refuse_idle

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of this command that were not given from the table [build] of a TOML file."""
    if path is None:
        default = Path("trtrun.toml")
        if not default.is_file():
            return None
        path = default
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BuildError(f"{path} cannot be read: {error}.") from error
    if unknown := sorted(tables.keys() - {"build"}):
        raise BuildError(f"{path} holds {unknown}, which trtrun does not know. Options are in the table [build].")
    table = tables.get("build", {})
    if not isinstance(table, dict):
        raise BuildError(f"{path}: build is no table. Write options below a line that says [build].")
    typer.echo(f"options from {path}", err=True)
    known: dict[str, Any] = {}  # by the longest of an option's names without its dashes, as --help shows it
    for option in context.command.params:
        if getattr(option, "hidden", False):
            continue
        known[max(option.opts, key=len).lstrip("-").replace("-", "_")] = option
    options: dict[str, Any] = {}
    for name, value in table.items():
        parameter = known.get(name.replace("-", "_"))
        if parameter is None or parameter.name in ("config", "help"):
            names = sorted(known.keys() - {"config", "help"})
            raise BuildError(f"{path}: [build] has {name!r}, which trtrun build does not know. It knows {names}.")
        is_flag = getattr(parameter, "is_flag", False)  # arguments have none
        if parameter.multiple != isinstance(value, list) or is_flag != isinstance(value, bool):
            wanted = "a list" if parameter.multiple else "true or false" if is_flag else "one value"
            raise BuildError(f"{path}: [build] {name} = {value!r}: {wanted} is expected.")
        options[str(parameter.name)] = value
    context.default_map = {**(context.default_map or {}), **options}
    return path


def _refuse_precision(wanted: bool) -> None:
    if wanted:
        raise BuildError(
            "networks are strongly typed, so int8 and fp8 are in the graph and no option. Quantize the model with your "
            "own data, and build what comes out: trtrun quantize model.onnx --data pictures/ --precision int8 (or fp8)."
        )


def _batches(text: str) -> tuple[int, ...]:
    """``1,8,32`` as numbers. Raises BuildError, showing the text."""
    from ..building.options import parse_shape

    plain = re.sub(r"\s", "", text)
    if not re.fullmatch(r"(-?\d+(,-?\d+)*)?", plain):
        raise BuildError(f"cannot read --specialize {text!r}: write batch sizes, like 8 or 1,8,32.")
    return parse_shape(plain.replace(",", "x"), "--specialize")


def _workspace(text: str) -> int:
    """A size in bytes. Raises BuildError for one that was meant in MiB, as trtexec takes it, and leaves no kernel."""
    from ..building.options import parse_bytes

    size = parse_bytes(text)
    if size < 1 << 20:
        raise BuildError(
            f"--workspace {text} is {size:,} bytes, too few for any layer. Write the unit: 2048M or 2G are 2 GiB."
        )
    return size


def command(
    model: Annotated[Path, typer.Argument(help="The ONNX file.")],
    config: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=_read_config,
            help="TOML file whose table \\[build] holds these options by name; ./trtrun.toml if it is there.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the engine; beside the model unless given.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MIN:OPT:MAX or NAME=SHAPE of a dynamic input, like images=1x3x640x640:8x3x640x640:32x3x640x640. "
            "Once per input; an input named again begins the next optimization profile."
        ),
    ] = None,
    specialize: Annotated[
        str | None, typer.Option(help="Batch sizes that get kernels of their own, like 1,8,32: faster than the range.")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SHAPE: replace the shape that the file declares, -1 where it shall be dynamic."),
    ] = None,
    flavor: Annotated[
        str | None, typer.Option(help="tensorrt_rtx or tensorrt; the first installed unless given.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="RTX: target GPU like sm_89 or 8.9, several allowed; portable unless given."),
    ] = None,
    optimization_level: Annotated[int | None, typer.Option(min=0, max=5, help="Builder optimization level.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Limit of scratch memory for layers, like 2GiB.")] = None,
    tf32: Annotated[
        bool,
        typer.Option(
            help="Allow TF32, 10 bits of mantissa, in fp32 matrix products and convolutions. Without it TensorRT-RTX "
            "takes about twice as long."
        ),
    ] = True,
    plugin: Plugins = None,
    refittable: Annotated[bool, typer.Option("--refittable", help="The engine takes new weights by name.")] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay on the host and be streamed to the GPU.")
    ] = False,
    debug_tensor: Annotated[
        list[str] | None, typer.Option(help="Tensor inside the network that can be read later; several allowed.")
    ] = None,
    output_tensor: Annotated[
        list[str] | None,
        typer.Option("--outputs", help="Tensor of the graph as an output instead; several allowed."),
    ] = None,
    simplify: Annotated[bool, typer.Option("--simplify", help="Fold constants and redundant nodes first.")] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Convert the graph to fp16 first, sensitive operators left in fp32.")
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="The same in bf16, which has the range of fp32 and eight bits of it.")
    ] = False,
    quantized: Annotated[bool, typer.Option("--int8", "--fp8", hidden=True, callback=_refuse_precision)] = False,
    convert_io: Annotated[
        bool, typer.Option("--convert-io", help="With --fp16 and --bf16: inputs and outputs too.")
    ] = False,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(help="With --fp16, --bf16: operator or node to leave in fp32; several allowed."),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Full TensorRT: the plan runs on later versions too.")
    ] = False,
    hardware_compatible: Annotated[
        str | None, typer.Option(help="Full TensorRT: ampere_plus or same_compute_capability.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Full TensorRT: file of kernel timings, read and written.")
    ] = None,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Keep layer details for trtrun inspect and trtrun profile.")
    ] = False,
    header: Annotated[
        bool,
        typer.Option(
            help="Write the ONNX file's metadata (task, names, …) in front of the plan, as Ultralytics does. trtexec "
            "and Triton's TensorRT backend take the plan alone: --no-header."
        ),
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Keep the engine only if it agrees with ONNX Runtime; needs a GPU.")
    ] = False,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="With --verify: FILE.npz with an array per input name.")
    ] = None,
    value_range: Annotated[
        list[str] | None, typer.Option("--range", help="With --verify: NAME=LOW:HIGH of a random input.")
    ] = None,
    l2: Annotated[
        float | None, typer.Option(min=0, help="With --verify: largest relative L2 of an output; 0.01 unless given.")
    ] = None,
) -> None:
    """Build an ONNX model into an engine. Works without a GPU with TensorRT-RTX."""
    from rich.text import Text

    from ..building import build
    from ..building.options import BuildOptions, parse_shapes
    from ..plan import identify_file
    from .progress import build_progress

    if not verify:
        idle = {"--inputs": inputs is not None, "--range": bool(value_range), "--l2": l2 is not None}
        refuse_idle(idle, "without --verify")
    options = BuildOptions(
        profiles=parse_shapes(shape or ()),
        specialize=_batches(specialize or ""),
        input_shapes=parse_named_shapes(input_shape or (), "--input-shape"),
        flavor=flavor,  # type: ignore[arg-type]  # for_building refuses names it does not know
        compute_capabilities=tuple(compute_capability or ()),
        optimization_level=optimization_level,
        workspace=_workspace(workspace) if workspace else None,
        tf32=tf32,
        plugins=tuple(plugin or ()),
        refittable=refittable,
        weight_streaming=weight_streaming,
        debug_tensors=tuple(debug_tensor or ()),
        outputs=tuple(output_tensor or ()),
        simplify=simplify,
        fp16=fp16,
        bf16=bf16,
        keep_io=not convert_io,
        keep_fp32=tuple(keep_fp32 or ()),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        timing_cache=timing_cache,
        detailed=detailed,
    )
    console = plain_console(stderr=True)
    start = time.perf_counter()
    with build_progress(console) as progress:
        if verify:
            from ..comparison import Tolerance, build_verified

            path, result = build_verified(
                model,
                output,
                options=options,
                progress=progress,
                tolerance=Tolerance() if l2 is None else Tolerance(l2=l2),
                inputs=read_npz(inputs),
                ranges=parse_ranges(value_range or ()),
                header=header,
            )
            verdict = f", verified: {result.tolerance}"
        else:
            path, verdict = build(model, output, options=options, progress=progress, header=header), ""
    seconds = time.perf_counter() - start
    plan = identify_file(path)
    done = Text.assemble(("✓", "green"), f" {path}: {plan}, built in {seconds:.1f} s{verdict}")
    console.print(done, soft_wrap=True)
    if plan.metadata:
        console.print(
            f"  in front of the plan: the ONNX file's metadata ({', '.join(plan.metadata)}); "
            "trtexec takes the plan alone: --no-header",
            soft_wrap=True,
        )
