"""The terminal that every command prints to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: names of files and tensors may hold ``[red]`` and ``:cat:``.

    What shall have a style is given one: ``style=``, or a ``rich.text.Text``.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
