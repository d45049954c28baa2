"""Input buffers that the caller fills, on the CPU: the same lines run there as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests import models
from trtrun.errors import ExecutionError, InputNameError, ShapeError
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.staging import Staging


def test_a_buffer_is_filled_and_run() -> None:
    with OnnxRuntimeSession(models.static()) as session, session.clone() as other:
        (name,) = session.inputs
        x = np.random.default_rng().standard_normal(session.inputs[name].shape).astype(session.inputs[name].dtype)
        wanted = session.run({name: x})
        assert isinstance(session.staging, Staging)
        assert list(session.staging) == [name]
        np.copyto(session.staging[name], x)
        assert np.shares_memory(session._prepare({name: session.staging[name]})[name], session.staging[name])
        for output, array in session.run({name: session.staging[name]}).items():
            np.testing.assert_array_equal(array, wanted[output])
        assert not np.shares_memory(other.staging[name], session.staging[name])
        with pytest.raises(InputNameError, match="no input 'other'"):
            session.staging.view("other", (1,))
        with pytest.raises(InputNameError, match="no input 'other'"):
            session.staging["other"]


def test_views_of_other_shapes_begin_in_the_same_place() -> None:
    with OnnxRuntimeSession(models.affine()) as session:
        large, small = session.staging.view("x", (4, 12)), session.staging.view("x", (2, 12))
        assert np.shares_memory(large, small)
        with pytest.raises(ShapeError, match=r"staging.view\('x', shape\)"):
            session.staging["x"]
        with pytest.raises(ShapeError):
            session.staging.view("x", (2, 13))
        with pytest.raises(ShapeError, match="no dynamic sizes"):
            session.staging.view("x", (-1, 12))


def test_bound_gpu_arrays_are_refused_by_name() -> None:
    with OnnxRuntimeSession(models.static()) as session, pytest.raises(ExecutionError, match="on the CPU"):
        session.bind({}, {})
