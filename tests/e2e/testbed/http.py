"""Plain HTTP beside kubectl: curl with the address and token of a kubeconfig."""

from __future__ import annotations

import base64
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The final answer that curl received; field names are in lower case, repeated fields keep their order."""

    status: int
    http_version: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def field(self, name: str) -> str | None:
        """The first value of a field."""
        return next((value for key, value in self.fields if key == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a kubeconfig leads, and with which credentials."""

    base: str
    token: str | None
    ca_file: Path

    @classmethod
    def of(cls, kubeconfig: Path) -> Endpoint:
        """The endpoint of a kubeconfig of the bed: a server, inline CA, and a token."""
        document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        cluster = document["clusters"][0]["cluster"]
        ca_file = kubeconfig.with_suffix(".ca.crt")
        if "certificate-authority-data" in cluster:
            ca_file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        else:
            ca_file = kubeconfig.parent / cluster["certificate-authority"]
        return cls(base=cluster["server"].rstrip("/"), token=document["users"][0]["user"].get("token"), ca_file=ca_file)

    @property
    def host(self) -> str:
        return self.base.split("/")[2].rsplit(":", 1)[0]

    @property
    def port(self) -> int:
        return int(self.base.split("/")[2].rsplit(":", 1)[1])

    @property
    def prefix(self) -> str:
        """The path of the address, without a trailing slash."""
        return "".join(f"/{part}" for part in self.base.split("/")[3:])

    def context(self) -> ssl.SSLContext:
        """A client context that trusts the endpoint's CA."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def curl(
        self, target: str, *options: str, body: bytes | None = None, authorized: bool = True, seconds: float = 60
    ) -> Answer:
        """One request for ``target``, sent byte for byte as it is (curl's ``--path-as-is``)."""
        with tempfile.TemporaryDirectory() as directory:
            head, content, sent = (Path(directory) / name for name in ("head", "content", "sent"))
            command = ["curl", "--silent", "--show-error", "--path-as-is", "--globoff", "--cacert", str(self.ca_file)]
            command += ["--max-time", str(seconds), "-D", str(head), "-o", str(content), "-w", "%{http_version}"]
            if authorized and self.token is not None:
                (Path(directory) / "token").write_text(f"Authorization: Bearer {self.token}\n", encoding="utf-8")
                command += ["-H", f"@{directory}/token"]
            if body is not None:
                sent.write_bytes(body)
                command += ["--data-binary", f"@{sent}"]
            command += [*options, self.base + target]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 10, check=False)
            if done.returncode != 0:
                raise CurlError(done.returncode, done.stderr.strip())
            *_, last = head.read_bytes().rstrip(b"\r\n").split(b"\r\n\r\n")
            status_line, _, rest = last.partition(b"\r\n")
            message = BytesParser().parsebytes(rest)
            return Answer(
                status=int(status_line.split()[1]),
                http_version=done.stdout,
                fields=tuple((name.lower(), value) for name, value in message.items()),
                body=content.read_bytes() if content.exists() else b"",
            )


class CurlError(Exception):
    """curl received no complete answer: its exit status and what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"curl ended with {status}: {message}")
        self.status = status
