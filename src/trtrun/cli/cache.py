"""``trtrun cache``: the engines and kernels kept on disk."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from .console import plain_console
from .options import AsJson

if TYPE_CHECKING:
    from ..building.cache import CacheEntry

app = typer.Typer(help="List, prune or clear the engines that load() built and kept.", no_args_is_help=True)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """Show what is in the cache, last used first."""
    from ..building import cache

    found = cache.entries()
    total, limit = sum(entry.bytes for entry in found), cache.cache_limit()
    if as_json:
        facts = {"directory": str(cache.cache_dir()), "bytes": total, "limit": limit}
        typer.echo(json.dumps({**facts, "entries": [entry.as_json() for entry in found]}, indent=2))
        return
    _print(found)
    typer.echo(f"{cache.cache_dir()}: {len(found)} entries, {_size(total)} of {_size(limit)} (TRTRUN_CACHE_SIZE)")


@app.command("prune")
def prune_command(
    size: Annotated[
        str | None, typer.Option(help="Keep at most this much, like 5GB; TRTRUN_CACHE_SIZE or 20GB unless given.")
    ] = None,
    unused_for: Annotated[
        str | None, typer.Option(help="Also remove what was not used for this long, like 12h, 30d or 8w.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what was used longest ago until the cache fits. What other processes are using now stays."""
    from ..building import cache
    from ..building.options import parse_bytes

    removed = cache.prune(
        limit=parse_bytes(size) if size else None, unused_for=_duration(unused_for) if unused_for else None
    )
    _report(removed, as_json)
    limit = parse_bytes(size) if size else cache.cache_limit()
    left = cache.entries()
    if not as_json and sum(entry.bytes for entry in left) > limit:
        typer.echo(
            f"that is more than {_size(limit)}: what was used within the last minute, or is being built, stays; "
            "trtrun cache clear removes the former too"
        )


@app.command("clear")
def clear_command(as_json: AsJson = False) -> None:
    """Remove everything that no process is building right now."""
    from ..building import cache

    _report(cache.clear(), as_json)


def _report(removed: list[CacheEntry], as_json: bool) -> None:
    from ..building import cache

    left = sum(entry.bytes for entry in cache.entries())
    if as_json:
        typer.echo(json.dumps({"removed": [entry.as_json() for entry in removed], "bytes_left": left}, indent=2))
        return
    if removed:
        _print(removed)
    freed = sum(entry.bytes for entry in removed)
    typer.echo(f"removed {len(removed)} entries, {_size(freed)}; {_size(left)} left in {cache.cache_dir()}")


def _print(found: list[CacheEntry]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    now = time.time()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for title in ("size", "built", "used"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    for entry in found:
        made_from = f"{entry.model or '(facts are missing)'}\n{entry.built_by or ''}".strip()
        table.add_row(
            entry.name,
            _size(entry.bytes),
            f"{_age(now - entry.created)} ago",
            f"{_age(now - entry.used)} ago",
            made_from if entry.kind == "engine" else "kernels compiled on this GPU",
        )
    plain_console().print(table)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:  # beyond which three digits are an exponent
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count * 1000:,.0f} TB"


def _age(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _duration(text: str) -> float:
    from ..errors import BuildError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if not match:
        raise BuildError(f"cannot read {text!r} as a duration: write a number with s, m, h, d or w, like 30d.")
    return float(match[1]) * _SECONDS[match[2]]
