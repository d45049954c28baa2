"""What every runner must do; the same tests run against TensorRT and against the CPU reference.

A subclass gives the fixture ``runner(name)`` for the models of :mod:`tests.models`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

import trtrun
from trtrun.runner import Runner
from trtrun.splitting import SplitRunner

Open = Callable[[str], Runner]


class RunnerConformance:
    def test_specs_name_inputs_and_outputs_in_engine_order(self, runner: Open) -> None:
        session = runner("several")
        assert list(session.inputs) == ["images", "size"]
        assert list(session.outputs) == ["total", "product", "scaled"]
        assert session.inputs["images"].dtype == np.float32
        assert session.inputs["images"].shape == (-1, 4)
        assert "images: float32 -1×4" in repr(session.inputs)

    def test_an_unknown_kind_of_outputs_is_refused(self, runner: Open) -> None:
        with pytest.raises(trtrun.InputError, match=r"outputs='gpu'.*\"device\""):
            runner("affine").run({"x": np.zeros((1, 12), np.float32)}, outputs="gpu")  # type: ignore[arg-type]

    def test_arrays_bind_by_position_and_by_name(self, runner: Open) -> None:
        session = runner("several")
        a, b = np.random.default_rng().standard_normal((2, 3, 4)).astype(np.float32)
        for out in (
            session(a, b),
            session(images=a, size=b),
            session(a, size=b),
            session.run({"size": b, "images": a}),
        ):
            assert list(out) == ["total", "product", "scaled"]
            np.testing.assert_allclose(out["total"], a + b, rtol=1e-5)
            np.testing.assert_allclose(out["product"], a * b, rtol=1e-5)
            np.testing.assert_allclose(out["scaled"], a * 3, rtol=1e-5)

    def test_outputs_have_the_shape_of_this_request(self, runner: Open) -> None:
        session = runner("affine")
        for batch in (4, 1, 7, 7, 7, 2):
            x = np.random.default_rng().standard_normal((batch, 12)).astype(np.float32)
            assert session(x)["y"].shape == (batch, 5)

    def test_results_belong_to_the_caller(self, runner: Open) -> None:
        session = runner("affine")
        x = np.random.default_rng().standard_normal((2, 4, 12)).astype(np.float32)
        first = session(x[0])["y"]
        kept = first.copy()
        for _ in range(4):
            session(x[1])
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # writable
        np.testing.assert_array_equal(session(x[0])["y"], kept)

    def test_non_contiguous_arrays_are_read_correctly(self, runner: Open) -> None:
        session = runner("affine")
        wide = np.random.default_rng().standard_normal((12, 8)).astype(np.float32)
        expected = session(np.ascontiguousarray(wide.T))["y"]
        for _ in range(3):
            np.testing.assert_array_equal(session(wide.T)["y"], expected)
            np.testing.assert_array_equal(session(wide.T[::-1])["y"], expected[::-1])
            np.testing.assert_array_equal(session(np.asfortranarray(wide.T))["y"], expected)

    def test_exact_conversions_happen_and_lossy_ones_are_refused(self, runner: Open) -> None:
        session = runner("affine")
        x = np.arange(48, dtype=np.int16).reshape(4, 12)
        np.testing.assert_array_equal(session(x)["y"], session(x.astype(np.float32))["y"])
        np.testing.assert_array_equal(session(x.astype(np.float16))["y"], session(x.astype(np.float32))["y"])
        for dtype in (np.float64, np.int32, np.int64, np.complex64):
            with pytest.raises(trtrun.DtypeError, match=rf"float32.*{np.dtype(dtype).name}.*astype\(np\.float32\)"):
                session(x.astype(dtype))
        with pytest.raises(trtrun.DtypeError, match="Python objects"):
            session(np.array([[None] * 12]))

    def test_wrong_names_are_refused(self, runner: Open) -> None:
        session = runner("several")
        a = np.ones((1, 4), np.float32)
        with pytest.raises(trtrun.InputNameError, match=r"missing: \['size'\]"):
            session(images=a)
        with pytest.raises(trtrun.InputNameError, match=r"unknown: \['sizes'\].*missing: \['size'\]"):
            session(images=a, sizes=a)
        with pytest.raises(trtrun.InputNameError, match="2 input"):
            session(a, a, a)
        with pytest.raises(trtrun.InputNameError, match="twice"):
            session(a, a, images=a)

    def test_what_is_no_mapping_and_what_is_no_array_is_said(self, runner: Open) -> None:
        session = runner("affine")
        x = np.ones((1, 12), np.float32)
        for request in (x, None, "x.npy", [x]):
            for run in (session.run, session.enqueue):
                with pytest.raises(trtrun.InputNameError, match=r"mapping.* got a .*Pass \{'x': array\}"):
                    run(request)  # type: ignore[arg-type]
        for request, says in (
            ({"x": x}, r"a dict, which is no array.*run\(\{…\}\)"),
            ("x.npy", "a str, which is no array.*Read the file"),
            (None, "a NoneType, which is no array"),
        ):
            with pytest.raises(trtrun.InputError, match=says):
                session(request)
        assert session(x)["y"].shape == (1, 5)

    def test_wrong_shapes_are_refused(self, runner: Open) -> None:
        session = runner("affine")
        with pytest.raises(trtrun.ShapeError, match=r"rank 2.*rank 1.*array\[None\]"):
            session(np.ones(12, np.float32))
        with pytest.raises(trtrun.ShapeError, match="dimension 1 must be 12, not 13"):
            session(np.ones((1, 13), np.float32))

    def test_runs_from_another_thread_and_from_many(self, runner: Open) -> None:
        session = runner("affine")
        rng = np.random.default_rng()
        inputs = [rng.standard_normal((1 + i % 5, 12)).astype(np.float32) for i in range(24)]
        expected = [session(x)["y"] for x in inputs]
        failures: list[BaseException] = []

        def work(offset: int) -> None:
            try:
                for i in range(offset, len(inputs), 4):
                    np.testing.assert_allclose(session(inputs[i])["y"], expected[i], rtol=1e-4, atol=1e-5)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_one_request_in_flight(self, runner: Open) -> None:
        session = runner("affine")
        x = np.random.default_rng().standard_normal((2, 12)).astype(np.float32)
        expected = session(x)["y"]
        pending = session.enqueue({"x": x})
        np.testing.assert_array_equal(pending.result()["y"], expected)
        changed = x.copy()
        pending = session.enqueue({"x": changed})
        changed[:] = 0  # allowed as soon as enqueue returns
        for second in (lambda: session.enqueue({"x": x}), lambda: session(x)):
            with pytest.raises(trtrun.ExecutionError, match="in flight"):
                second()
        np.testing.assert_array_equal(pending.result()["y"], expected)

    def test_clones_are_independent(self, runner: Open) -> None:
        session = runner("affine")
        x = np.random.default_rng().standard_normal((2, 12)).astype(np.float32)
        with session.clone() as clone:
            np.testing.assert_array_equal(clone(x)["y"], session(x)["y"])
        assert clone.closed
        assert not session.closed
        session(x)

    def test_use_after_close_is_refused_and_close_is_idempotent(self, runner: Open) -> None:
        session = runner("affine")
        with session as entered:
            assert entered is session
        assert session.closed
        session.close()
        x = np.ones((1, 12), np.float32)
        for use in (lambda: session(x), lambda: session.enqueue({"x": x}), session.clone, session.__enter__):
            with pytest.raises(trtrun.ClosedError, match="closed"):
                use()
        assert "closed" in repr(session)

    def test_state_is_fed_back(self, runner: Open) -> None:
        session = runner("recurrent")
        rng = np.random.default_rng()
        with session.state({"h": "h_out"}) as sequence:
            assert list(sequence.inputs) == ["x"]
            assert list(sequence.outputs) == ["y"]
            h = np.zeros((2, 8), np.float32)
            for turn in range(20):
                if turn == 10:
                    h = rng.standard_normal((2, 8)).astype(np.float32)
                    sequence.reset({"h": h})
                x = rng.standard_normal((2, 8)).astype(np.float32)
                out = sequence(x) if turn % 2 else sequence.enqueue({"x": x}).result()
                np.testing.assert_allclose(out["y"], x + h, rtol=1e-5, atol=1e-6)
                h = (x + h) / 2
                np.testing.assert_allclose(sequence.read_state()["h"], h, rtol=1e-5, atol=1e-6)
            with pytest.raises(trtrun.ExecutionError, match="cannot be cloned"):
                sequence.clone()
            with pytest.raises(trtrun.InputNameError):
                sequence.run({"x": x, "h": h})
            sequence.reset()
            np.testing.assert_array_equal(sequence.read_state()["h"], 0)
        assert sequence.closed
        for pairs, initial in (({"h": "nothing"}, None), ({"nothing": "h_out"}, None), ({"h": "h_out"}, {"x": h})):
            with pytest.raises(trtrun.InputNameError):
                session.state(pairs, initial=initial)
        np.testing.assert_allclose(session(x, h)["y"], x + h, rtol=1e-5)  # the runner below is as it was

    def test_states_that_do_not_fit_are_refused(self, runner: Open) -> None:
        session = runner("recurrent")
        for pairs, initial, error in (
            ({"h": "nothing"}, None, trtrun.InputNameError),
            ({"nothing": "h_out"}, None, trtrun.InputNameError),
            ({"h": "h_out", "x": "h_out"}, None, trtrun.InputNameError),
            ({"h": "h_out"}, {"x": np.zeros((2, 8), np.float32)}, trtrun.InputNameError),
            ({"h": "h_out"}, {"h": np.zeros((3, 8), np.float32)}, trtrun.ShapeError),
            ({"h": "h_out"}, {"h": np.zeros((2, 8))}, trtrun.DtypeError),
        ):
            with pytest.raises(error):
                session.state(pairs, initial=initial)

    def test_batches_of_any_size_are_split(self, runner: Open) -> None:
        with SplitRunner(runner("static")) as split:  # its batch is 3
            rng = np.random.default_rng()
            for batch in (1, 3, 5, 12, 13):
                x = rng.standard_normal((batch, 12)).astype(np.float32)
                rows = [split(np.repeat(row[None], 3, axis=0))["y"][:1] for row in x]
                np.testing.assert_allclose(split(x)["y"], np.concatenate(rows), rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(
                    split.enqueue({"x": x}).result()["y"], np.concatenate(rows), rtol=1e-5, atol=1e-6
                )
            for wrong in (np.zeros((0, 12), np.float32), np.zeros((5, 11), np.float32), np.float32(0)):
                with pytest.raises(trtrun.ShapeError):
                    split(wrong)
            with pytest.raises(trtrun.InputNameError):
                split.run({})
            with pytest.raises(trtrun.InputError, match="outputs='gpu'"):
                split.run({"x": x}, outputs="gpu")  # type: ignore[arg-type]
