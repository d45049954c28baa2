"""Several processes that serve on the same ports, and the one that starts and watches them.

One interpreter answers 760 to 1,410 requests a second, whatever the number of GPUs. The kernel spreads connections
over all processes that listen on a port (SO_REUSEPORT); a worker listens when its models have run once, so none that is
starting gets any.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError

_LOG = logging.getLogger("trtrun.serve")
_VARIABLE = "TRTRUN_WORKER"
_READY, _ALIVE = b"r", b"a"
_BEAT, _SILENCE = 2.0, 60.0  # seconds between a worker's signs of life, and without any until it counts as hanging
_DELAYS = (1.0, 60.0)  # seconds before a worker is started again: the first, and the longest
_MOST = 4  # workers of a GPU that nobody asked for: more wait for the GPU and not for an interpreter
_CORES = 4  # of the machine for each of them: its threads, and clients, of which many are on the same machine
_BYTES = 1 << 30  # of model files that those of a GPU load together: the GPU's memory is for requests, too
_LONGEST_PATH = 100  # bytes of a Unix socket's, less than the kernel's 108


@dataclass(frozen=True)
class Place:
    """What a worker must know of the others.

    Attributes:
        index: its own number, from 0 on.
        count: the number of workers.
        folder: for them alone; holds their Unix sockets, what is registered and what was unloaded.
        port, grpc_port: those that all listen on; None for no gRPC.
        channel: a file descriptor that ends when the supervisor does, and takes the word that this worker is ready and
            the signs of its life thereafter.
    """

    index: int
    count: int
    folder: str
    port: int
    grpc_port: int | None
    channel: int

    @staticmethod
    def here() -> Place | None:
        """That of this process; None where it is no worker."""
        text = os.environ.pop(_VARIABLE, None)  # no child of this one is a worker
        return None if text is None else Place(**json.loads(text))

    def share(self, devices: range) -> range:
        """This worker's part of these GPUs: each is dealt out once, or several workers have the same."""
        return devices[self.index :: self.count] or devices[self.index % max(len(devices), 1) :][:1]

    def socket_of(self, index: int) -> Path:
        return Path(self.folder, f"{index}.sock")

    def say_ready(self) -> None:
        """Called in the event loop, which from now on says that it is alive: one that hangs gets clients, too."""
        os.set_blocking(self.channel, False)
        self._say(_READY)

    def _say(self, what: bytes) -> None:
        with suppress(OSError):
            os.write(self.channel, what)
        asyncio.get_running_loop().call_later(_BEAT, self._say, _ALIVE)


def usable_cores() -> int:
    """Cores that this process may use, also where a container grants it a part of their time only."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is no such file outside of a container, or it says "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def suitable_count(gpus: int, cores: int, nbytes: int) -> int:
    """How many workers a machine is served by where nobody says it: on each GPU as many as it has cores for, up to
    four, and fewer where the models are large, because each loads them. At least one for each GPU; one without a GPU,
    where the models themselves take all cores.

    Args:
        gpus: that are served on.
        nbytes: of the model files.
    """
    if gpus < 1 or not hasattr(socket, "SO_REUSEPORT"):
        return 1
    return gpus * max(min(_MOST, cores // (_CORES * gpus), _BYTES // max(nbytes, 1)), 1)


class Supervisor:
    """Starts the workers, hands signals on to them, and starts anew the one that dies.

    Args:
        bound: seconds in which a worker must have ended after SIGTERM.
    """

    def __init__(self, count: int, port: int, grpc_port: int | None, folder: str, bound: float) -> None:
        self._places = [Place(index, count, folder, port, grpc_port, -1) for index in range(count)]
        self._bound = bound
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ready: set[int] = set()
        self._failed = False
        self._events: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()  # None: a worker is no more

    def run(self) -> bool:
        """Until SIGTERM or SIGINT, or a worker that does not get ready the first time; False for the latter.

        Must run in the main thread, whose signals it takes.
        """
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            for place in self._places:
                threading.Thread(target=self._keep, args=(place,), name=f"trtrun-worker-{place.index}").start()
            left = len(self._places)
            while left:
                event = self._events.get()
                if event is None:
                    left -= 1
                else:
                    self._hand_on(event)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return not self._failed

    def _note(self, number: int, _: object) -> None:
        self._events.put(signal.Signals(number))

    def _hand_on(self, number: signal.Signals) -> None:
        with self._lock:
            if number != signal.SIGHUP and not self._ending.is_set():
                self._ending.set()
                timer = threading.Timer(self._bound, self._kill)
                timer.daemon = True
                timer.start()
            for index, process in self._running.items():
                # Who is starting reads all models anyway, and would end: it has no handler yet.
                if number != signal.SIGHUP or index in self._ready:
                    process.send_signal(number)

    def _kill(self) -> None:
        with self._lock:
            for index, process in self._running.items():
                _LOG.error("worker %d did not end within %.0f s and is killed", index, self._bound)
                process.kill()

    def _keep(self, place: Place) -> None:
        try:
            delay, longest = _DELAYS
            begun = False
            while True:
                start = time.monotonic()
                try:
                    status, ready = self._once(place)
                except OSError:  # no room for a process just now, which must not end the others
                    if not begun:
                        raise
                    _LOG.exception("worker %d cannot be started", place.index)
                    status, ready = 1, False
                begun = begun or ready
                if self._ending.is_set():
                    self._failed |= status not in (0, -signal.SIGTERM, -signal.SIGINT)
                    return
                how = f"signal {-status}" if status < 0 else f"status {status}"
                if not begun:
                    _LOG.critical("worker %d has ended with %s before it was ready; all end", place.index, how)
                    self._failed = True
                    self._events.put(signal.SIGTERM)
                    return
                if time.monotonic() - start > longest:
                    delay = _DELAYS[0]
                _LOG.error("worker %d has ended with %s; it is started again in %.0f s", place.index, how, delay)
                if self._ending.wait(delay):
                    return
                delay = min(2 * delay, longest)
        except BaseException:
            self._failed = True
            self._events.put(signal.SIGTERM)
            raise
        finally:
            self._events.put(None)

    def _once(self, place: Place) -> tuple[int, bool]:
        """Run a worker to its end: its exit status, and whether it got ready."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                if self._ending.is_set():
                    return 0, False
                told = json.dumps({**asdict(place), "channel": theirs.fileno()})
                self._running[place.index] = process = subprocess.Popen(
                    [sys.executable, "-m", "trtrun", *sys.argv[1:]],
                    env={**os.environ, _VARIABLE: told},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C in a terminal reaches it once, through here
                )
            ready = ours.recv(1) == _READY
            if ready:
                _LOG.info("worker %d is ready: process %d", place.index, process.pid)
                with self._lock:
                    self._ready.add(place.index)
                ours.settimeout(_SILENCE)
                try:
                    while ours.recv(64):
                        pass
                except TimeoutError:
                    _LOG.error("worker %d hangs: no sign of life for %.0f s; it is killed", place.index, _SILENCE)
                    process.kill()
            status = process.wait()
            with self._lock:
                del self._running[place.index]
                self._ready.discard(place.index)
            return status, ready


def supervise(count: int, sockets: list[socket.socket], over_grpc: list[socket.socket], bound: float) -> bool:
    """Run so many workers with this process's own command line; False where one could not get ready.

    Args:
        sockets, over_grpc: bound and not listening: they keep the ports for the workers, and are closed at the end.
        bound: see :class:`Supervisor`.

    Raises InputError where the folder for temporary files has too long a path.
    """
    with ExitStack() as undo:
        for one in (*sockets, *over_grpc):
            undo.callback(one.close)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # now: to bind it, the port had to be free
        folder = tempfile.mkdtemp(prefix="trtrun-")  # mode 0700
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        if len(os.fsencode(folder)) > _LONGEST_PATH - len("/1234.sock"):
            raise InputError(f"{folder!r} is too long a path for the workers' sockets. Set TMPDIR to a shorter one.")
        for name in ("regions", "unloaded"):
            Path(folder, name).mkdir()
        # systemd-tmpfiles, which removes what is old from /tmp, leaves a folder alone that somebody has locked.
        held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, held)
        fcntl.flock(held, fcntl.LOCK_EX)
        grpc_port = over_grpc[0].getsockname()[1] if over_grpc else None
        _LOG.info("starting %d workers", count)
        return Supervisor(count, sockets[0].getsockname()[1], grpc_port, folder, bound).run()
