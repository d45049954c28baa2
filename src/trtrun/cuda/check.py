"""CUDA's return codes as trtrun's errors."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from cuda.bindings import driver
from cuda.core._utils.cuda_utils import CUDAError as CUDAError  # what cuda.core raises

from ..errors import DeviceError, OutOfMemoryError

_OUT_OF_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a ``cuda.bindings.driver`` call, or the error that its return code stands for.

    ``what`` completes the sentence "CUDA could not …".
    """
    code = result[0]
    if code == driver.CUresult.CUDA_SUCCESS:
        return result[1] if len(result) == 2 else result[1:] or None
    raise error_for(code, what)


def error_for(code: Any, what: str) -> DeviceError:
    text = driver.cuGetErrorString(code)[1]
    reason = f"{code.name}: {text.decode() if text else 'no description'}"
    if code == _OUT_OF_MEMORY:
        return OutOfMemoryError(
            f"CUDA could not {what}: {reason}. Free memory (close other engines, sessions and processes on this GPU; "
            "nvidia-smi lists them), or use smaller shapes, fewer sessions or a smaller profile."
        )
    return DeviceError(f"CUDA could not {what}: {reason}.")


class translated:  # noqa: N801  # used like the functions of contextlib
    """Turn the errors of ``cuda.core`` inside the block into trtrun's. ``what`` as for :func:`check`."""

    __slots__ = ("_what",)  # a class and not a generator: it stands on the way of every request

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, CUDAError):
            return
        if "CUDA_ERROR_OUT_OF_MEMORY" in str(error):
            raise error_for(_OUT_OF_MEMORY, self._what) from error
        raise DeviceError(f"CUDA could not {self._what}: {error}") from error
