"""The deployment files say what the command and the server understand. They were not deployed here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from typer.main import get_command

from trtrun.cli import app
from trtrun.serve import server
from trtrun.serve.http_api import application
from trtrun.serve.repository import Repository
from trtrun.serve.server import ServerOptions

DEPLOY = Path(__file__).parents[3] / "deploy"


def options() -> set[str]:
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {name for parameter in serve.params for name in parameter.opts}


def documents() -> list[dict]:
    return [
        one for name in ("kubernetes.yaml", "kserve.yaml") for one in yaml.safe_load_all((DEPLOY / name).read_text())
    ]


def containers() -> list[dict]:
    specs = [one["spec"].get("template", one)["spec"] for one in documents() if one["kind"] != "Service"]
    return [container for spec in specs for container in spec["containers"]]


def test_every_option_exists() -> None:
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "trtrun.service").read_text(), re.M)
    docker = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert unit
    given = [*shlex.split(unit[1]), *(word for line in docker for word in yaml.safe_load(line))]
    given += [word for container in containers() for word in container["args"]]
    wanted = {word for word in given if word.startswith("--")}
    assert wanted
    assert wanted <= options()


def test_a_pod_is_given_the_time_to_drain() -> None:
    (spec,) = (one["spec"]["template"]["spec"] for one in documents() if one["kind"] == "Deployment")
    sleep, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert spec["terminationGracePeriodSeconds"] > int(seconds) + ServerOptions().drain + server._CLOSING


def test_probes_ask_what_the_server_answers() -> None:
    served = {route.path for route in application(Repository(lambda path: None)).routes}  # type: ignore[arg-type, return-value]
    probes = [
        probe["httpGet"]["path"]
        for container in containers()
        for kind, probe in container.items()
        if kind.endswith("Probe")
    ]
    assert len(probes) == 5
    assert set(probes) <= served


def test_the_image_gets_what_the_package_is_built_of_and_nothing_else() -> None:
    root = DEPLOY.parent
    copied = [
        word
        for line in re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
        for word in line.split()
    ]
    assert all((root / name).exists() for name in copied)
    project = (root / "pyproject.toml").read_text()
    (readme,) = re.findall(r'^readme = "(.*)"$', project, re.M)
    (licenses,) = re.findall(r'^license-files = \["(.*)"\]$', project, re.M)
    assert set(copied) == {"pyproject.toml", readme, licenses, "src"}


def test_kserve_is_offered_what_the_image_runs() -> None:
    docker = (DEPLOY / "Dockerfile").read_text()
    (extras,) = re.findall(r'"/src\[(.*)\]"', docker)
    (runtime,) = (one["spec"] for one in documents() if one["kind"] == "ServingRuntime")
    brought = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
    runs = {brought[extra] for extra in extras.split(",") if extra in brought} | {"onnx"}
    assert {one["name"] for one in runtime["supportedModelFormats"]} == runs
    # Of the version that the tests run with, which is the last for the GPUs that they ran on.
    (pinned,) = re.findall(r'"tensorrt-rtx-cu13==([\d.]+)"', (DEPLOY.parent / "pyproject.toml").read_text())
    assert re.findall(r"^ARG TENSORRT_RTX=(.*)$", docker, re.M) == [pinned]
    assert '"tensorrt-rtx-cu13==$TENSORRT_RTX"' in docker


def test_the_documented_curl_writes_no_error_into_a_file() -> None:
    lines = [line for line in (DEPLOY.parent / "docs" / "serving.md").read_text().splitlines() if line[:5] == "curl "]
    assert len(lines) == 3
    assert all(re.search(r" (-f|--fail-with-body) ", line) for line in lines)


def test_ports_and_users() -> None:
    runtime, deployment = (
        next(d for d in documents() if d["kind"] == kind) for kind in ("ServingRuntime", "Deployment")
    )
    args = runtime["spec"]["containers"][0]["args"]
    assert args[args.index("--port") + 1] == "8080"  # KServe's own
    assert args[args.index("--grpc-port") + 1] == "9000"
    pod = deployment["spec"]["template"]["spec"]
    user = pod["containers"][0]["securityContext"]["runAsUser"]
    assert pod["securityContext"]["fsGroup"] == user
    assert pod["terminationGracePeriodSeconds"] > ServerOptions().drain + server._CLOSING
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "trtrun.service").read_text(), re.M)
    assert int(stop) > ServerOptions().drain + server._CLOSING
