"""TLS and tokens over both protocols, with a certificate made here."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tritonclient.utils import InferenceServerException

from tests import models
from tests.unit.serve.process import Server


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 for one day, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trtrun test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return public, private


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    (folder / "affine.onnx").write_bytes(models.affine())
    (folder / "token").write_text("secret")
    public, private = certificate(folder)
    options = ["--tls-certificate", str(public), "--tls-key", str(private), "--token-file", str(folder / "token")]
    server = Server(str(folder / "affine.onnx"), *options, log=folder / "log", wait=False)
    context = ssl.create_default_context(cafile=str(public))
    for _ in range(300):
        try:
            if ask(server, context, "GET", "/v2/health/ready")[0] == 200:
                break
        except OSError:
            time.sleep(0.1)
    yield server
    assert server.stop() == 0


def ask(
    server: Server, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None, token: str = ""
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(server.address, context=context, timeout=20)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_https(server: Server, folder: Path) -> None:
    context = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
    x = {"name": "x", "datatype": "FP32", "shape": [1, 12], "data": [0.5] * 12}
    body, path = json.dumps({"inputs": [x]}).encode(), "/v2/models/affine/infer"
    assert ask(server, context, "POST", path, body)[0] == 401
    assert ask(server, context, "POST", path, body, token="wrong")[0] == 401
    status, answer = ask(server, context, "POST", path, body, token="secret")
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"]
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, ssl.create_default_context(), "GET", "/v2/health/live")
    plain = http.client.HTTPConnection(server.address, timeout=5)
    plain.request("GET", "/v2/health/live")  # not encrypted
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()
    plain.close()


def test_grpc(server: Server, folder: Path) -> None:
    address = f"127.0.0.1:{server.grpc_port}"
    root = str(folder / "certificate.pem")
    given = triton.InferInput("x", [1, 12], "FP32")
    given.set_data_from_numpy(np.zeros((1, 12), np.float32))
    with triton.InferenceServerClient(address, ssl=True, root_certificates=root) as client:
        assert client.is_server_ready()
        for headers in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(InferenceServerException, match="bearer token"):
                client.infer("affine", [given], headers=headers)
        result = client.infer("affine", [given], headers={"authorization": "Bearer secret"})
        assert result.get_response().model_name == "affine"
    with triton.InferenceServerClient(address) as client, pytest.raises(InferenceServerException):
        client.is_server_live(client_timeout=3)


def test_a_certificate_needs_its_key(folder: Path) -> None:
    done = Server.refused(str(folder / "affine.onnx"), "--tls-certificate", str(folder / "certificate.pem"))
    assert "belong together" in done
    for wrong in (folder / "nowhere.pem", folder / "token"):
        said = Server.refused(
            str(folder / "affine.onnx"), "--tls-certificate", str(folder / "certificate.pem"), "--tls-key", str(wrong)
        )
        assert "Traceback" not in said
        assert wrong.name in said
