"""nginx as the load balancer in front of both listeners of kas, configured as docs/load-balancers.md says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from e2e.testbed.cluster import Pki
from e2e.testbed.processes import BedError, Process, free_port, until

_CONFIGURATION = """\
daemon off;
{user}
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr info;
events {{ worker_connections 4096; }}
http {{
    access_log {directory}/logs/nginx-access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;

    map $http_upgrade $connection_upgrade {{
        default upgrade;
        ''      '';
    }}
    upstream kas_clients {{ server 127.0.0.1:{proxy_port}; keepalive 64; }}
    upstream kas_agents  {{ server 127.0.0.1:{agents_port}; }}

    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate     {certificate};
        ssl_certificate_key {key};

        large_client_header_buffers 4 64k;
        client_max_body_size 0;

        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_ssl_server_name on;
        proxy_ssl_name localhost;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {ca};

        proxy_buffering off;
        proxy_request_buffering off;
        proxy_next_upstream off;
        proxy_read_timeout 1h;
        proxy_send_timeout 1h;

        lingering_close always;
        lingering_timeout 30s;
        lingering_time 10m;

        location / {{
            proxy_pass https://kas_clients;
        }}
        location = /agent/v1/tunnel {{
            proxy_pass https://kas_agents;
        }}
    }}
}}
"""


_INGRESS = """\
daemon off;
{user}
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;

    map $http_upgrade $passed_upgrade {{
        {passed}
    }}
    map $passed_upgrade $connection_upgrade {{
        default upgrade;
        ''      '';
    }}
    server {{
        listen 127.0.0.1:{port}{ssl};
        ssl_certificate     {certificate};
        ssl_certificate_key {key};

        proxy_http_version 1.1;
        proxy_set_header Upgrade $passed_upgrade;
        proxy_set_header Connection $connection_upgrade;
        location / {{
            proxy_pass https://127.0.0.1:{agents_port};
        }}
    }}
}}
"""
_PASSED = {
    "everything": "default $http_upgrade;",
    "websocket": "websocket websocket; default '';",
    "nothing": "default '';",
}


def _run_nginx(directory: Path, configuration: str) -> Process:
    """A running nginx with its files in ``directory``."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise BedError("nginx is not installed (Debian: nginx-light)")
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    file, log = directory / "nginx.conf", directory / "logs" / "nginx.log"
    file.write_text(configuration, encoding="utf-8")
    process = Process("nginx", [program, "-e", "stderr", "-p", directory, "-c", file], log=log)
    until(lambda: (directory / "nginx.pid").exists(), seconds=10, what=f"nginx runs, see {log}")
    return process


def _user() -> str:
    return "user root root;" if os.geteuid() == 0 else ""  # its files are in our private directory


class Ingress:
    """nginx as somebody set it up who did not read the documentation: without TLS, or without (all) upgrades."""

    def __init__(
        self,
        directory: Path,
        *,
        pki: Pki,
        agents_port: int,
        tls: bool = True,
        passes: Literal["everything", "websocket", "nothing"] = "everything",
    ) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        pki.issue("ingress", "127.0.0.1", "localhost")
        configuration = _INGRESS.format(
            user=_user(),
            directory=directory,
            passed=_PASSED[passes],
            port=self.port,
            ssl=" ssl" if tls else "",
            certificate=pki.directory / "ingress.crt",
            key=pki.directory / "ingress.key",
            agents_port=agents_port,
        )
        self.process = _run_nginx(directory, configuration)

    def stop(self) -> None:
        """End it."""
        self.process.stop()


class Nginx:
    """A running nginx."""

    def __init__(self, directory: Path, *, pki: Pki, agents_port: int, proxy_port: int) -> None:
        self.port = free_port()
        pki.issue("nginx", "127.0.0.1", "localhost")
        configuration = _CONFIGURATION.format(
            user=_user(),
            directory=directory,
            proxy_port=proxy_port,
            agents_port=agents_port,
            port=self.port,
            certificate=pki.directory / "nginx.crt",
            key=pki.directory / "nginx.key",
            ca=pki.ca_file,
        )
        self.process = _run_nginx(directory, configuration)

    def stop(self) -> None:
        """End it."""
        self.process.stop()
