"""``trtrun serve``: models behind the Open Inference Protocol."""

from __future__ import annotations

import logging
import os
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import Device, Plugins, parse_size, read_labels, why


def command(
    models: Annotated[
        list[str] | None, typer.Argument(help="PATH or NAME=PATH of engines, ONNX files, bundles.")
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder of models: NAME/VERSION/model.{engine,plan,onnx}, as Triton has it, or plain files."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the HTTP protocol.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=-1, max=65535, help="Port of gRPC; -1 for none.")] = 8001,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of several requests that run together; what the profiles take unless given. 1: off.",
        ),
    ] = None,
    max_queue_delay: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a request waits for others to fill its batch.")
    ] = 0.0,
    queue_size: Annotated[
        int, typer.Option(min=1, help="Requests to a model that may wait; more are turned away.")
    ] = 1024,
    max_queue_time: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Milliseconds that a request may be expected to wait in a queue that does not empty any more; "
            "those that would wait longer are turned away. The time of a batch unless given.",
        ),
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Batches of a model in progress at once on a GPU.")] = 2,
    max_body: Annotated[int, typer.Option(min=1, help="Mebibytes of a request at most.")] = 256,
    max_bodies: Annotated[
        int, typer.Option(min=1, help="Mebibytes at most of all requests that are under way.")
    ] = 2048,
    max_pixels: Annotated[int, typer.Option(min=1, help="Megapixels of a picture at most.")] = 64,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a secret; requests need Authorization: Bearer SECRET then.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    shared_memory: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            help="Clients may register every shared memory object whose name begins so; without it, those that "
            "belong to their own user.",
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=HEAD: the decoder of a model of vision, where outputs and metadata do not say."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=TASK: what it is for, where outputs and metadata do not say: detect, obb, pose, …"),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="MODEL=FILE: text file with one class name per line.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="MODEL=WIDTHxHEIGHT: that pictures get, where the network takes several.")
    ] = None,
    device: Device = 0,
    all_devices: Annotated[bool, typer.Option("--all-devices", help="Serve on every GPU of this machine.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Processes that share the ports, each with models, queues and --max-bodies of its own: as many times "
            "the memory. Unless given: one for every 4 cores, up to 4 on each GPU, fewer where the model files are "
            "large; 1 without a GPU. With --all-devices the GPUs are dealt out to them.",
        ),
    ] = None,
    plugin: Plugins = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log one JSON object a line.")] = False,
) -> None:
    """Serve models over HTTP and gRPC; clients of Triton and KServe work with them."""
    # Until there is a handler, which takes seconds of imports, "systemctl reload" would end it, and for good: systemd
    # calls that a clean exit. Workers inherit it. Whoever starts reads all models anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # gRPC's older way to read sockets: a lone request of 600 kB took 14 % less, and its server 20 % less of a core.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    try:
        from ..serve.batcher import BatchOptions
        from ..serve.http_api import HttpOptions
        from ..serve.logs import log_to_stderr
        from ..serve.repository import Repository, named
        from ..serve.server import ServerOptions, serve, serve_by_workers
        from ..serve.workers import Place, suitable_count, usable_cores
    except ImportError as error:
        from ..errors import MissingPackageError

        raise MissingPackageError(f"serving needs more packages ({error}). Run: pip install 'trtrun[serve]'") from error
    from ..cuda.device import gpu_count
    from ..plan import ModelFile
    from ..predictor import load

    if not models and repository is None:
        raise InputError("there is nothing to serve: name models, or --repository FOLDER.")
    if (tls_certificate is None) != (tls_key is None):
        raise InputError("--tls-certificate and --tls-key belong together.")
    if tls_certificate is not None and tls_key is not None:
        _check_tls(tls_certificate, tls_key)
    if repository is not None and not repository.is_dir():
        raise InputError(f"{str(repository)!r} is no folder.")
    vision = _vision(head or (), task or (), labels or (), size or ())
    token = None
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = why(error) if isinstance(error, OSError) else "it is no text in UTF-8"
            raise InputError(f"cannot read the secret in {str(token_file)!r}: {reason}. Write one there.") from error
        if not token:
            raise InputError(f"{str(token_file)!r} holds no secret.")
    place = Place.here()
    devices = range(gpu_count()) if all_devices else range(device, device + 1)
    options = ServerOptions(
        host,
        port if place is None else place.port,
        (None if grpc_port < 0 else grpc_port) if place is None else place.grpc_port,
        HttpOptions(max_body << 20, max_bodies << 20, max_pixels << 20, token),
        tls_certificate,
        tls_key,
        shared_memory=shared_memory,
        place=place,
    )
    log_to_stderr(as_json=json_logs, worker=None if place is None else place.index)
    if place is not None:
        devices = place.share(devices)
    files = named(models or ())
    served = Repository(
        lambda path: load(
            path,
            device=device,
            devices=None if not all_devices else list(devices) or "all",
            plugins=plugin or (),
        ),
        files,
        folder=repository,
        options=BatchOptions(
            max_batch_size,
            max_queue_delay / 1e3,
            queue_size,
            instances,
            None if max_queue_time is None else max_queue_time / 1e3,
        ),
        vision=vision,
        devices=devices,
    )
    # Once: a folder that goes later must not keep a worker from starting again.
    if place is None:
        served.check_unambiguous()
        for path in files.values():
            ModelFile(path)  # one that is not there is said before anything listens
        served.say_skipped()
        if unknown := sorted(vision.keys() - set(served.names())):
            raise InputError(f"--head, --task, --labels or --size name {unknown}, the models are {served.names()}.")
        gpus, cores, nbytes = min(len(devices), gpu_count()), usable_cores(), served.size()
        count = workers or suitable_count(gpus, cores, nbytes)
        if count > 1:
            if workers is None:
                logging.getLogger("trtrun.serve").info(
                    "%d workers for %d cores and %d GPU(s): each takes GPU memory for %.0f MiB of model files and a "
                    "CUDA context; --workers 1 starts one",
                    count,
                    cores,
                    gpus,
                    nbytes / 2**20,
                )
            if not serve_by_workers(count, options):
                raise typer.Exit(1)
            return
    if serve(served, options):
        raise typer.Exit(1)


def _vision(
    heads: Sequence[str], tasks: Sequence[str], labels: Sequence[str], sizes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """``MODEL=VALUE`` texts as options of ``vision.task`` by model. Raises InputError, showing the text."""
    from ..vision.heads import HEADS, TASKS

    found: dict[str, dict[str, Any]] = {}
    choices: dict[str, tuple[Sequence[str], Sequence[str]]] = {"head": (heads, tuple(HEADS)), "task": (tasks, TASKS)}
    for option, (texts, known) in choices.items():
        for text in texts:
            name, _, value = text.partition("=")
            if not name or value not in known:
                raise InputError(
                    f"cannot read --{option} {text!r}: write MODEL={option.upper()}, with one of {', '.join(known)}."
                )
            found.setdefault(name, {})[option] = value
    for text in labels:
        name, _, file = text.partition("=")
        if not name or not file:
            raise InputError(f"cannot read --labels {text!r}: write MODEL=FILE.")
        found.setdefault(name, {})["names"] = dict(enumerate(read_labels(Path(file))))
    for text in sizes:
        name, _, pixels = text.partition("=")
        if not name or not pixels:
            raise InputError(f"cannot read --size {text!r}: write MODEL=WIDTHxHEIGHT.")
        found.setdefault(name, {})["size"] = parse_size(pixels)
    return found


def _check_tls(certificate: Path, key: Path) -> None:
    """Raise InputError unless these are a certificate and its key, which the servers would say less clearly."""
    for path in (certificate, key):
        if not path.is_file():
            raise InputError(f"there is no file {str(path)!r}.")
    try:
        # Without a password OpenSSL would ask the terminal for that of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(certificate)!r} and {str(key)!r} are no certificate and its key, both in PEM and without a "
            f"password: {error}."
        ) from error
