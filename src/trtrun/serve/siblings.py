"""What the workers of one server do together: models, metrics, statistics, shared memory.

Each listens on a Unix socket in their private folder, and answers one JSON line with another. A server of one process
has no siblings, and the same calls are then its own alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ModelNotFoundError, TrtrunError, WorkerError
from .aside import aside, in_thread
from .bodies import Bodies
from .metrics import exposition, of_workers
from .repository import Model, Repository, check_name, merged
from .shared_memory import CudaRegion, Kind, SharedMemory, SystemRegion
from .workers import Place

_LOG = logging.getLogger("trtrun.serve")
_MOST = 64 << 20  # bytes of a line
_SHORT, _LONG = 5.0, 600.0  # seconds for an answer: from memory, and for a model that is loaded

_KINDS: dict[str, Any] = {"system": SystemRegion, "cuda": CudaRegion}


class Siblings:
    """This worker and the others. Used from the event loop.

    Args:
        place: of this worker; None where it is the only one.
    """

    def __init__(
        self, repository: Repository, memory: SharedMemory, bodies: Bodies, place: Place | None = None
    ) -> None:
        self.place = place
        self._repository = repository
        self._memory = memory
        self._bodies = bodies
        self._loaded = asyncio.Event()  # all models, once

    # What clients ask for

    async def load(self, model: str) -> None:
        """Load a model in all workers: in this one first, so that one that is no good changes nothing anywhere.

        Raises what loading it here raises, and WorkerError where another worker could not.
        """
        check_name(model)
        await self._change("load", model, self._load)

    async def unload(self, model: str) -> None:
        """Unload a model in all workers. Raises ModelNotFoundError where none has it, and WorkerError."""
        check_name(model)
        await self._change("unload", model, self._unload)

    async def _change(self, what: str, model: str, change: Callable[[str], Awaitable[None]]) -> None:
        if self.place is None:
            await in_thread(lambda: getattr(self._repository, what)(model))
            return
        # To its end, should the client go: half of the workers would have changed.
        await asyncio.shield(asyncio.create_task(self._one_at_a_time(change(model))))

    async def _one_at_a_time(self, change: Awaitable[None]) -> None:
        assert self.place is not None
        held = os.open(Path(self.place.folder, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            await in_thread(lambda: fcntl.flock(held, fcntl.LOCK_EX))
            await change
        finally:
            os.close(held)

    async def _load(self, model: str) -> None:
        await in_thread(lambda: self._repository.load(model))
        self._mark(model).unlink(missing_ok=True)
        _raise_first(await self._tell({"do": "load", "model": model}, _LONG))

    async def _unload(self, model: str) -> None:
        mine: ModelNotFoundError | None = None
        marked = self.is_unloaded(model)
        self._mark(model).touch()  # first: who starts meanwhile must not load it
        try:
            await in_thread(lambda: self._repository.unload(model))
        except ModelNotFoundError as error:
            mine = error
        answers = await self._tell({"do": "unload", "model": model}, _LONG)
        missing = [index for index, answer in answers.items() if answer.get("kind") == ModelNotFoundError.__name__]
        if mine is not None and len(missing) == len(answers):
            if not marked:
                self._mark(model).unlink()
            raise mine
        _raise_first({index: answer for index, answer in answers.items() if index not in missing})

    def is_unloaded(self, model: str) -> bool:
        """Whether somebody has unloaded it, which a worker that is started again must not undo."""
        return self.place is not None and self._mark(model).exists()

    def _mark(self, model: str) -> Path:
        assert self.place is not None
        return Path(self.place.folder, "unloaded", model)

    async def metrics(self) -> tuple[bytes, str]:
        """The metrics of all workers in Prometheus' text format, and its content type."""
        mine = await self._exposition()
        if self.place is None:
            return mine
        answers = await self._tell({"do": "metrics"}, _SHORT)
        texts = {index: answer["result"] for index, answer in answers.items() if "result" in answer}
        texts[self.place.index] = mine[0].decode()
        return await aside(lambda: of_workers(texts))

    async def _exposition(self) -> tuple[bytes, str]:
        return await aside(lambda: exposition(self._repository, self._bodies))

    async def summaries(self, models: list[Model]) -> list[dict[str, Any]]:
        """The statistics of these models in all workers together; see :meth:`Repository.summary`."""
        found = [self._repository.summary(model) for model in models]
        answers = await self._tell({"do": "statistics"}, _SHORT)
        for answer in answers.values():
            others = {(one["name"], one["version"]): one for one in answer.get("result", ())}
            found = [merged(one, others.get((one["name"], one["version"]), {})) for one in found]
        return found

    async def register(self, name: str, key: str, nbytes: int, offset: int, client: Any) -> None:
        """See :meth:`SharedMemory.register`. The others open it too: its client may remove its name thereafter."""
        await aside(lambda: self._memory.register(name, key, nbytes, offset, client=client))
        await self._tell({"do": "open", "name": name}, _SHORT)

    async def register_cuda(self, name: str, handle: bytes, device_id: int, nbytes: int) -> None:
        """See :meth:`SharedMemory.register_cuda`. The others open it when they need it: each needs a CUDA context on
        that GPU."""
        await in_thread(lambda: self._memory.register_cuda(name, handle, device_id, nbytes))

    async def unregister(self, kind: type[Kind], name: str | None) -> None:
        """See :meth:`SharedMemory.unregister`: when it is answered, no worker uses the region for new requests."""
        self._memory.unregister(kind, name)
        word = next(word for word, one in _KINDS.items() if one is kind)
        _raise_first(await self._tell({"do": "forget", "kind": word, "name": name}, _SHORT))

    # The others

    async def _tell(self, what: dict[str, Any], seconds: float) -> dict[int, dict[str, Any]]:
        """Their answers by index: each has "result", or "error" and "kind". Those that do not run are left out: when
        they start they read what there is."""
        if self.place is None:
            return {}
        others = [index for index in range(self.place.count) if index != self.place.index]
        answers = await asyncio.gather(*(self._ask(index, what, seconds) for index in others))
        return {index: answer for index, answer in zip(others, answers, strict=True) if answer is not None}

    async def _ask(self, index: int, what: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        assert self.place is not None
        try:
            reader, writer = await asyncio.open_unix_connection(self.place.socket_of(index), limit=_MOST)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            writer.write(json.dumps(what).encode() + b"\n")
            line = await asyncio.wait_for(reader.readline(), seconds)
            answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended meanwhile.", "kind": ""}
        except asyncio.TimeoutError:
            answer = {"error": f"it did not answer within {seconds:.0f} s.", "kind": ""}
        except (OSError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}", "kind": ""}
        finally:
            writer.close()
        return answer

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer the others."""
        if self.place is None:
            yield
            return
        path = self.place.socket_of(self.place.index)
        path.unlink(missing_ok=True)  # of the one that was here before
        server = await asyncio.start_unix_server(self._serve, path, limit=_MOST)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    def begin(self) -> None:
        """All models have been loaded: changes that others ask for may be made now, and clients come."""
        self._loaded.set()
        if self.place is not None:
            self.place.say_ready()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any]
        try:
            asked = json.loads(await reader.readline())
            do: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]] = {
                "load": self._do_change,
                "unload": self._do_change,
                "metrics": self._do_metrics,
                "statistics": self._do_statistics,
                "open": self._do_open,
                "forget": self._do_forget,
            }
            answer = {"result": await do[asked["do"]](asked)}
        except TrtrunError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        except Exception as error:  # the one that asks must hear of it
            _LOG.exception("a worker's question failed")
            answer = {"error": f"{type(error).__name__}: {error}", "kind": ""}
        with suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _do_change(self, asked: dict[str, Any]) -> None:
        await self._loaded.wait()
        await in_thread(lambda: getattr(self._repository, asked["do"])(asked["model"]))

    async def _do_metrics(self, asked: dict[str, Any]) -> str:
        # Of one that is starting there are none: who is told of has begun to serve.
        return (await self._exposition())[0].decode() if self._loaded.is_set() else ""

    async def _do_statistics(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        return [self._repository.summary(model) for model, _ in self._repository.loaded()]

    async def _do_open(self, asked: dict[str, Any]) -> None:
        await aside(lambda: self._memory.open(asked["name"]))

    async def _do_forget(self, asked: dict[str, Any]) -> None:
        self._memory.forget(_KINDS[asked["kind"]], asked["name"])


def _raise_first(answers: dict[int, dict[str, Any]]) -> None:
    for index, answer in answers.items():
        if "error" in answer:
            raise WorkerError(
                f"worker {index} did not do it, and this one did: {answer['error']} Ask again when that is mended."
            )
