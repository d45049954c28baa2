"""The command ``trtrun``: one file per command, which parses, calls the library and prints."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from typing import Annotated, Any

import typer

from ..errors import TrtrunError
from . import (
    bench,
    build,
    bundle,
    cache,
    compare,
    demo,
    evaluate,
    inspect,
    profile,
    quantize,
    run,
    serve,
    vision,
)
from .console import plain_console

app = typer.Typer(
    name="trtrun",
    help="Run TensorRT engines at the full speed of the GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("bench")(bench.command)
app.command("build")(build.command)
app.add_typer(bundle.app, name="bundle")
app.add_typer(cache.app, name="cache")
app.command("classify")(vision.classify)
app.command("compare")(compare.command)
app.command("demo")(demo.command)
app.command("detect")(vision.detect)
app.command("eval")(evaluate.command)
app.command("inspect")(inspect.command)
app.command("ocr")(vision.ocr)
app.command("pose")(vision.pose)
app.command("profile")(profile.command)
app.command("quantize")(quantize.command)
app.command("run")(run.command)
app.command("segment")(vision.segment)
app.command("serve")(serve.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what TensorRT says, informational too.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    from rich.logging import RichHandler

    if context.obj is not None:
        context.obj.append(context.invoked_subcommand)
    # To stderr, so that --json leaves stdout to the data.
    handler = RichHandler(console=plain_console(stderr=True), show_time=False, show_path=False)
    if not verbose:  # an error's own TensorRT lines are printed with it; twice would be once too many
        handler.addFilter(lambda record: record.name != "trtrun.tensorrt")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("trtrun.building").setLevel(logging.INFO)  # each change to a graph is reported


def main() -> Any:
    """Run the command; trtrun's own errors become one message on stderr and exit code 1, of ``compare`` 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text; a message with \\udcff is one
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    commands: list[str] = []
    try:
        return app(obj=commands)
    except Exception as error:
        if isinstance(error, (TrtrunError, OSError)):  # OSError: an output that cannot be written
            print(f"trtrun: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        # Of compare 1 says that the models differ, as diff and cmp have it.
        return sys.exit(2 if "compare" in commands else 1)
