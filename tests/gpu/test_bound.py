"""Bound requests: GPU arrays read and written in place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.gpu.conftest import relative_error
from trtrun.errors import ClosedError, DtypeError, InputError, InputNameError, ShapeError
from trtrun.session import Session

torch = pytest.importorskip("torch")
Open = Callable[..., Session]


def on_gpu(session: Session, name: str, rows: int, *shape: int) -> tuple[dict, dict]:
    """Arrays for an engine, outputs poisoned."""
    x = torch.zeros((rows, *shape), device="cuda")
    example = session.run({"x": x.cpu().numpy()})
    return {"x": x}, {key: torch.full(array.shape, torch.nan, device="cuda") for key, array in example.items()}


@pytest.mark.parametrize(("name", "shape"), [("static", (3, 12)), ("convolution", (2, 3, 32, 32))])
@pytest.mark.parametrize("kind", ["none", "stream", "default"])
def test_every_call_computes_what_the_arrays_hold_then(
    name: str, shape: tuple[int, ...], kind: str, open_session: Open, reference: Callable
) -> None:
    session = open_session(name)
    inputs, outputs = on_gpu(session, name, *shape)
    stream = {"none": None, "stream": torch.cuda.Stream(), "default": torch.cuda.default_stream()}[kind]
    rng = np.random.default_rng()
    requests = [rng.standard_normal(shape).astype(np.float32) for _ in range(20)]
    with session.bind(inputs, outputs, stream=stream) as call:
        with torch.cuda.stream(torch.cuda.default_stream() if stream is None else stream):
            found = []
            for x in requests:
                torch.cuda._sleep(2_000_000)  # what follows is late, and the call comes after it all the same
                inputs["x"].copy_(torch.from_numpy(x).pin_memory(), non_blocking=True)
                for array in outputs.values():
                    array.fill_(torch.nan)
                assert call() is call.outputs
                found.append({key: array.clone() for key, array in outputs.items()})
        torch.cuda.synchronize()
        for x, out in zip(requests, found, strict=True):
            for key, wanted in reference(name)(x).items():
                assert relative_error(out[key].cpu().numpy(), wanted) <= 5e-3
    with pytest.raises(ClosedError):
        call()


def test_two_bound_requests_and_the_session_do_not_disturb_each_other(open_session: Open, reference: Callable) -> None:
    session = open_session("convolution")
    rng = np.random.default_rng()
    stream = torch.cuda.Stream()
    bound = []
    for shape in ((1, 3, 8, 8), (4, 3, 32, 32)):
        inputs, outputs = on_gpu(session, "convolution", *shape)
        bound.append((inputs["x"], session.bind(inputs, outputs, stream=stream)))
    for _ in range(10):
        for x, call in bound:
            array = rng.standard_normal(tuple(x.shape)).astype(np.float32)
            other = rng.standard_normal((2, 3, 16, 16)).astype(np.float32)
            with torch.cuda.stream(stream):
                x.copy_(torch.from_numpy(array))
                out = {key: value.clone() for key, value in call().items()}
            own = session.run({"x": other})
            stream.synchronize()
            for key, wanted in reference("convolution")(array).items():
                assert relative_error(out[key].cpu().numpy(), wanted) <= 5e-3
            for key, wanted in reference("convolution")(other).items():
                assert relative_error(own[key], wanted) <= 5e-3
    session.engine.close()
    for _, call in bound:
        with pytest.raises(ClosedError):
            call()


def test_what_does_not_fit_is_refused(open_session: Open) -> None:
    session = open_session("convolution")
    inputs, outputs = on_gpu(session, "convolution", 2, 3, 32, 32)
    x, y = inputs["x"], outputs["y"]
    wrong: list[tuple[type[Exception], dict, dict]] = [
        (InputNameError, {}, outputs),
        (InputNameError, inputs, {"y": y}),
        (InputError, {"x": x.cpu()}, outputs),
        (InputError, {"x": x.cpu().numpy()}, outputs),
        (InputError, {"x": torch.zeros(2 * 3 * 32 * 32 + 1, device="cuda")[1:].view(2, 3, 32, 32)}, outputs),
        (InputError, {"x": x.transpose(2, 3)}, outputs),
        (DtypeError, {"x": x.half()}, outputs),
        (DtypeError, inputs, {**outputs, "y": y.double()}),
        (ShapeError, inputs, {**outputs, "y": y[:1].clone()}),
        (ShapeError, {"x": torch.zeros(2, 4, 32, 32, device="cuda")}, outputs),
        (InputError, {"x": y.view(-1)[: 2 * 3 * 32 * 32].view(2, 3, 32, 32)}, outputs),
    ]
    for kind, given, taken in wrong:
        with pytest.raises(kind):
            session.bind(given, taken)
    with session.bind(inputs, outputs) as call:
        before = {key: array.clone() for key, array in call().items()}
        with call.paused():  # as while weights are replaced
            y.fill_(torch.nan)
        assert all(torch.equal(array, before[key]) for key, array in call().items())
    session.close()
    with pytest.raises(ClosedError):
        session.bind(inputs, outputs)
