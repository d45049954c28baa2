"""Every error that trtrun raises.

    TrtrunError
    ├── MissingPackageError (ImportError)      an optional package is not installed; names the extra
    ├── ModelFileError (OSError)               the path does not exist, or cannot be read or written
    ├── PlanError (ValueError)                 the bytes are not a plan, or not all of one
    │   └── PlanMismatchError                  a plan of another flavour, version or GPU
    ├── BundleError (ValueError)               a bundle is damaged, changed or wrongly signed
    ├── OnnxError (ValueError)                 the ONNX model cannot be read or parsed
    ├── BuildError                             the builder refused the network or the options
    │   └── VerificationError                  the engine was built and misses the tolerance
    ├── PluginError                            a plugin library or creator is missing
    ├── RefitError (ValueError)                new weights do not fit the engine, or it takes none
    ├── InputError (ValueError)                what the caller passed does not fit the engine
    │   ├── InputNameError                     unknown, missing or extra names
    │   ├── ShapeError                         wrong rank, or a dimension outside every profile
    │   ├── DtypeError (TypeError)             a conversion that could change values
    │   ├── RequestTooLargeError               more bytes or pixels than a server takes
    │   ├── RequestStalledError                a request's body stopped coming
    │   └── MediaTypeError                     a request's body is of a kind that is not taken there
    ├── UnsupportedTensorError                 the engine has an input or output trtrun cannot carry
    ├── ExecutionError                         TensorRT or ONNX Runtime failed while running a request
    ├── DeviceError                            CUDA failed
    │   ├── NoGpuError                         no driver, no GPU, or a driver that is too old
    │   └── OutOfMemoryError (MemoryError)     not enough device or page-locked memory
    ├── ServerBusyError                        a served model's queue is full
    ├── RequestTimeoutError                    a request to a served model waited too long
    ├── ModelNotFoundError                     the server has no such model, or not in this version
    ├── WorkerError                            another process of the same server did not do what this one did
    └── ClosedError                            the object was used after close()

A message says what conflicts, what follows from it, and what to do. Where TensorRT logged something that
belongs to the failure, its own lines are in ``log`` and at the end of the message.
"""

from __future__ import annotations

from collections.abc import Iterable


class TrtrunError(Exception):
    """Base of all errors raised by trtrun.

    Attributes:
        log: TensorRT's own log lines that belong to this failure, oldest first; empty where there are none.
    """

    def __init__(self, message: str, *, log: Iterable[str] = ()) -> None:
        self.message = message
        self.log = tuple(log)
        super().__init__(message)

    def __str__(self) -> str:
        if not self.log:
            return self.message
        return "\n".join([self.message, "TensorRT said:", *(f"  {line}" for line in self.log)])

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only state does not survive the default pickling of exceptions, and errors cross process borders.
        return (_rebuild, (type(self), self.message, self.log))


def _rebuild(kind: type[TrtrunError], message: str, log: tuple[str, ...]) -> TrtrunError:
    return kind(message, log=log)


class MissingPackageError(TrtrunError, ImportError):
    """An optional package is not installed."""


class ModelFileError(TrtrunError, OSError):
    """A model file does not exist, or cannot be read or written."""


class PlanError(TrtrunError, ValueError):
    """The bytes are not a serialized TensorRT engine, or not all of one."""


class PlanMismatchError(PlanError):
    """The plan was made by another flavour or version of TensorRT, or for another GPU."""


class BundleError(TrtrunError, ValueError):
    """A bundle is damaged, was changed, or was signed with another key."""


class OnnxError(TrtrunError, ValueError):
    """An ONNX model cannot be read or parsed."""


class BuildError(TrtrunError):
    """The builder refused the network or the options."""


class VerificationError(BuildError):
    """An engine was built, but its outputs differ from the ONNX model's by more than the tolerance."""


class PluginError(TrtrunError):
    """A plugin library cannot be loaded, or a plugin creator is missing."""


class RefitError(TrtrunError, ValueError):
    """New weights do not fit the engine, or the engine takes none."""


class InputError(TrtrunError, ValueError):
    """What the caller passed does not fit the engine."""


class InputNameError(InputError):
    """An input name is unknown, missing or given twice."""


class ShapeError(InputError):
    """An input has the wrong rank, or a dimension outside what the engine accepts."""


class DtypeError(InputError, TypeError):
    """An input's dtype differs from the engine's and converting it could change values."""


class RequestTooLargeError(InputError):
    """A request to a server has more bytes, or its picture more pixels, than the server takes."""


class RequestStalledError(InputError):
    """A request to a server whose body stopped coming before its end."""


class MediaTypeError(InputError):
    """The body of a request to a server is of a kind that is not taken there."""


class UnsupportedTensorError(TrtrunError):
    """The engine has an input or output of a kind that trtrun cannot carry yet."""


class ExecutionError(TrtrunError):
    """TensorRT or ONNX Runtime failed while running a request."""


class DeviceError(TrtrunError):
    """A CUDA call failed."""


class NoGpuError(DeviceError):
    """There is no usable GPU: no driver, no device, or a driver that is too old."""


class OutOfMemoryError(DeviceError, MemoryError):
    """There is not enough device memory or page-locked host memory."""


class ServerBusyError(TrtrunError):
    """The queue of a served model is full: come back later."""


class RequestTimeoutError(TrtrunError):
    """A request to a served model was not begun in the time it was given."""


class ModelNotFoundError(TrtrunError):
    """The server has no such model, or not in this version, or it is not ready."""


class WorkerError(TrtrunError):
    """Another worker of this server did not do what this one did."""


class ClosedError(TrtrunError):
    """The object was used after ``close()``."""
