"""The server in a process of its own, for the tests."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


class Server:
    """``trtrun serve`` in a process of its own."""

    def __init__(
        self,
        *arguments: str,
        log: Path,
        gpu: bool = False,
        wait: bool = True,
        as_json: bool = True,
        host: str = "",
        instead: list[str] | None = None,
        any_port: bool = False,
    ) -> None:
        with socket.socket() as free, socket.socket() as other:
            free.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port, self.grpc_port = (0, 0) if any_port else (free.getsockname()[1], other.getsockname()[1])
        self.address = f"{host or '127.0.0.1'}:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "trtrun", "serve", *arguments, "--port", str(self.port)]
        command += ["--grpc-port", str(self.grpc_port)]
        command += [*(["--json-logs"] if as_json else []), *(["--host", host.strip("[]")] if host else [])]
        if instead is not None:  # of the command, and with both ports
            command = [*instead, str(self.port), str(self.grpc_port)]
        with log.open("w") as errors:
            hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
            self.process = subprocess.Popen(command, stderr=errors, env={**os.environ, **hidden})
        atexit.register(self.process.kill)  # a test that fails leaves none behind
        for _ in range(300 if wait else 0):
            if self.process.poll() is not None or self.get("/v2/health/ready")[0] == 200:
                break
            time.sleep(0.1)

    def get(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (urllib.error.URLError, ConnectionError):
            return 0, b""

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    @staticmethod
    def refused(*arguments: str) -> str:
        """What the command says when it ends by itself, which it must, with 1."""
        command = [sys.executable, "-m", "trtrun", "serve", *arguments, "--port", "0", "--grpc-port", "-1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        return done.stderr
