"""``trtrun bundle``: engines, their model and what belongs to them in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import plain_console
from .options import AsJson, read_key, read_labels, why

if TYPE_CHECKING:
    from ..bundle import Bundle

app = typer.Typer(help="Engines, their model and what belongs to them in one file.", no_args_is_help=True)


_ALL = "every GPU that this version supports"


@app.command()
def create(
    output: Annotated[Path, typer.Argument(help="The bundle to write, like detector.bundle.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(help="An engine; FILE@9.0 where it runs on that compute capability alone. Best first."),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            help="The model that the engines were built from: the CPU runs it, and where none fits it is built."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; the file's unless given.")] = None,
    metadata: Annotated[Path | None, typer.Option(help="JSON file: names, task, preprocess, …")] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with a label per line, as metadata 'names'.")] = None,
    task: Annotated[str | None, typer.Option(help="Metadata 'task': detect, classify, segment, …")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the model, like MIT.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="What the engines were built from, if not --onnx: name and hash are kept.")
    ] = None,
    accuracy: Annotated[Path | None, typer.Option(help="JSON file, like that of trtrun compare --json.")] = None,
    key: Annotated[Path | None, typer.Option(help="Ed25519 private key (PEM) to sign with.")] = None,
) -> None:
    """Write a bundle."""
    from ..building.files import check_target
    from ..bundle import write_bundle
    from ..cuda.device import gpu_count
    from ..errors import BundleError
    from ..vision.heads import TASKS

    if task is not None and task not in TASKS:
        raise BundleError(f"there is no task {task!r}. Known: {', '.join(TASKS)}; --metadata holds any other.")
    check_target(output, [path for path in (metadata, labels, accuracy, key) if path], BundleError)
    facts = _json(metadata) if metadata else {}
    if labels:
        facts["names"] = {str(i): line for i, line in enumerate(read_labels(labels))}
    if task:
        facts["task"] = task
    engines = []
    for text in engine or ():
        file, _, capability = text.rpartition("@") if "@" in text and not Path(text).exists() else (text, "", "")
        engines.append((file, capability or None))
    bundle = write_bundle(
        output,
        engines=engines,
        onnx=onnx,
        name=name,
        metadata=facts,
        licence=licence,
        source=source,
        accuracy=_json(accuracy) if accuracy else None,
        private_key=read_key(key, "private") if key else None,
    )
    _print(bundle)
    if engines and onnx and not gpu_count():
        typer.echo("Without a GPU an engine's inputs and outputs are not known: load() compares them with the model's.")


@app.command()
def show(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    as_json: AsJson = False,
) -> None:
    """Show what is in a bundle."""
    from ..bundle import open_bundle

    opened = open_bundle(bundle)
    if as_json:
        typer.echo(json.dumps(opened.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(opened)


@app.command()
def header(
    engine: Annotated[Path, typer.Argument(help="An engine.")],
    metadata: Annotated[Path, typer.Argument(help="JSON file: names, task, imgsz, stride, …")],
    output: Annotated[Path, typer.Argument(help="The engine to write, with the metadata in front.")],
) -> None:
    """Write metadata in front of an engine, as Ultralytics does; what stood there before is replaced."""
    from ..building.files import check_target, write_atomic
    from ..errors import BundleError
    from ..plan import ModelFile, header_of, identify

    check_target(output, [metadata], BundleError)
    data = ModelFile(engine)
    plan = identify(data, source=str(engine))
    write_atomic(output, header_of(_json(metadata)) + data[plan.offset :])
    typer.echo(f"{output}: {plan}, with {metadata.name} in front")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    key: Annotated[Path | None, typer.Option(help="Ed25519 public key (PEM) that it must be signed with.")] = None,
) -> None:
    """Check every byte of a bundle, and with a key who signed it."""
    from ..bundle import open_bundle

    opened = open_bundle(bundle)
    if key:
        opened.check_signature(read_key(key, "public"))
    opened.check()
    typer.echo(f"{bundle}: intact" + (", signed with this key" if key else ""))


@app.command()
def keygen(
    private: Annotated[Path, typer.Argument(help="Where to write the private key.")],
    public: Annotated[Path, typer.Argument(help="Where to write the public key.")],
) -> None:
    """Make a pair of Ed25519 keys to sign bundles with."""
    import os

    from ..building.files import check_target
    from ..bundle import new_keys
    from ..errors import BundleError

    if private.absolute() == public.absolute():
        raise BundleError(f"both keys would be written to {private}. Name two files.")
    for path in (private, public):  # both first: a private key that is there is not written over
        check_target(path, error=BundleError)
    secret, known = new_keys()
    try:
        with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
    except FileExistsError as error:
        raise BundleError(f"{private} exists, and a private key is not written over. Name another file.") from error
    public.write_bytes(known)
    typer.echo(f"wrote {private} (keep it secret) and {public}")


def _json(path: Path) -> dict[str, Any]:
    from ..errors import BundleError

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {str(path)!r}: {why(error)}.") from error
    except ValueError as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} holds {type(value).__name__}, and a JSON object is expected: {{…}}.")
    return value


def _print(bundle: Bundle) -> None:
    from rich.table import Table

    console = plain_console()
    told = bundle.interface
    tensors_of = {"inputs": told.inputs, "outputs": told.outputs} if told else {}
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    for title, value in (
        ("file", str(bundle.path)),
        ("name", bundle.name),
        ("source", bundle.source or "unknown"),
        ("licence", bundle.licence or "not said"),
        ("created", bundle.created or "unknown"),
        ("signed", "yes" if bundle.signature else "no"),
        ("metadata", ", ".join(bundle.metadata) or "none"),
        ("accuracy", "reported" if bundle.accuracy else "not said"),
        *((title, "\n".join(map(str, tensors))) for title, tensors in tensors_of.items()),
    ):
        facts.add_row(title, value)
    console.print(facts)
    table = Table()
    for title in ("member", "built by", "runs on", "bytes"):
        table.add_column(title, overflow="fold")  # names in full
    for engine in bundle.engines:
        where = f"compute capability {engine.compute_capability}" if engine.compute_capability else _ALL
        table.add_row(engine.file, f"{engine.family} {engine.version}", where, f"{engine.bytes:,}")
    if bundle.onnx:
        table.add_row(
            bundle.onnx.file, "", "the CPU, and GPUs that no engine fits: built there", f"{bundle.onnx.bytes:,}"
        )
    console.print(table)
