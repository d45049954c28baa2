"""Input buffers that the caller fills, which spares the copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from .arrays import Host
from .errors import InputNameError, ShapeError
from .runner import Runner
from .tensor_spec import Shape


class Staging(Mapping[str, Host]):
    """A runner's input buffers, to fill directly: ``np.copyto(pred.staging.view("images", batch.shape), batch)``.

    ``staging[name]`` has the input's static shape, or the largest shape its profiles allow; :meth:`view` gives any
    other. A view passed as an input, or the leading part of one (``staging["images"][:4]``), is not copied again.
    A view may be filled again as soon as the request that used it has returned. Asking for a larger shape than
    before moves the buffer: take a new view then, older ones keep the old memory.

    They are page-locked memory where the runner is on a GPU, and ordinary memory where it is not.
    """

    def __init__(self, runner: Runner, view: Callable[[str, Shape], Host]) -> None:
        self._runner = runner
        self._view = view

    def __getitem__(self, name: str) -> Host:
        self._check_name(name)
        shape = self._runner.inputs[name].max_shape
        if shape is None:
            raise ShapeError(f"input {name!r} has no largest shape; use staging.view({name!r}, shape).")
        return self.view(name, shape)

    def __contains__(self, name: object) -> bool:
        return name in self._runner.inputs  # the inherited one would allocate the buffer to find out

    def view(self, name: str, shape: Shape) -> Host:
        """The buffer of this input as an array of this shape. Raises InputNameError or ShapeError."""
        self._check_name(name)
        shape = tuple(shape)
        if min(shape, default=0) < 0:
            raise ShapeError(f"a view of input {name!r} has no dynamic sizes, got {list(shape)}: give each a number.")
        return self._view(name, shape)

    def _check_name(self, name: str) -> None:
        if name not in self._runner.inputs:
            raise InputNameError(f"the model has no input {name!r}; it takes {self._runner.inputs!r}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._runner.inputs)

    def __len__(self) -> int:
        return len(self._runner.inputs)
