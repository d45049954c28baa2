"""Decoding on the GPU, where the packages for it are installed: JPEG by nvImageCodec, video files by PyNvVideoCodec.

Pictures come to the host from there, frames as NV12: half of the bytes, and the CPU converts nothing.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ..errors import InputError, MissingPackageError
from .preprocess import NV12, Picture

Decode = Literal["CPU", "GPU"]

_FRAMES = 8  # that are decoded at once
_local = threading.local()  # a decoder for each thread


def require(decode: str, *, pictures: bool = True, videos: bool = True) -> None:
    """Raise MissingPackageError where a package to decode these so is missing, and InputError for an unknown way."""
    if decode not in ("CPU", "GPU"):
        raise InputError(f"decode is 'CPU' or 'GPU', got {decode!r}.")
    if decode == "GPU" and pictures:
        _pictures()
    if decode == "GPU" and videos:
        _videos()


def is_jpeg(data: bytes | bytearray) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def decode_jpeg(data: bytes | bytearray, name: str) -> Picture:
    """The picture in the bytes of a JPEG file, turned as its EXIF data say. Raises InputError where there is none."""
    codec = _pictures()
    if not hasattr(_local, "decoder"):
        _local.decoder = codec.Decoder()
        _local.how = codec.DecodeParams(
            apply_exif_orientation=True, color_spec=codec.ColorSpec.SRGB, sample_format=codec.SampleFormat.I_BGR
        )
    image = _local.decoder.decode(bytes(data), params=_local.how)
    if image is None:
        raise InputError(
            f"{name} ({len(data):,} bytes) is no JPEG that the GPU can decode. Leave out decode='GPU' "
            "(--decode-on-gpu)."
        )
    picture: Picture = np.array(image.cpu())
    return picture


def frames(path: str) -> Iterator[tuple[NV12, float]]:
    """The frames of a video file, and how many there are a second. Raises InputError for what cannot be decoded."""
    codec = _videos()
    try:
        decoder = codec.SimpleDecoder(path, gpu_id=0, use_device_memory=False)
        facts = decoder.get_stream_metadata()
        width, height = int(facts.width), int(facts.height)
        while batch := decoder.get_batch_frames(_FRAMES):
            for frame in batch:
                nbytes = int(frame.framesize())
                if nbytes * 2 != width * height * 3:
                    raise InputError(
                        f"{path!r} is not of 8 bits with halved chroma: {nbytes:,} bytes for {width}×{height}. "
                        "Leave out decode='GPU' (--decode-on-gpu)."
                    )
                # The decoder uses the memory of a frame again.
                memory = (ctypes.c_uint8 * nbytes).from_address(int(frame.GetPtrToPlane(0)))
                planes = np.ctypeslib.as_array(memory).reshape(-1, width).copy()
                yield NV12(planes), float(facts.average_fps)
            if len(batch) < _FRAMES:
                return
    except InputError:
        raise
    except Exception as error:  # of classes of its own
        raise InputError(
            f"{path!r} cannot be decoded on the GPU: {error}. Leave out decode='GPU' (--decode-on-gpu)."
        ) from error


@functools.cache
def _pictures() -> Any:
    return _import("nvidia.nvimgcodec")


@functools.cache
def _videos() -> Any:
    return _import("PyNvVideoCodec")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # without the driver's video libraries PyNvVideoCodec raises RuntimeError
        reason = str(error).strip().partition("\n")[0]
        raise MissingPackageError(
            f"{module} cannot be imported ({reason}). Run: pip install 'trtrun[decode]'. PyNvVideoCodec also needs the "
            "driver's libraries for video; in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video."
        ) from error
