"""Real Ray clusters on this machine: a head with a dashboard, more raylets, and their end."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import psutil

DEADLINE_S = 90


_PORTS = iter(range(21_000 + os.getpid() % 5_000, 32_000))


def free_port() -> int:
    """A port that nobody listens on, outside of those that Ray's workers take; never twice."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class RayCluster:
    """A head, and raylets that can be killed one by one."""

    def __init__(
        self,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        cpus: int = 2,
    ) -> None:
        self._ray = str(Path(python).parent / "ray")
        # As if it had been activated: the entry point of a job is `python`.
        path = f"{Path(python).parent}:{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            **(environment or {}),
        }
        self._gcs = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        # Short, because socket paths have 107 characters at most.
        self.folder = mkdtemp(prefix="ray-", dir="/tmp")
        dashboard = free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self._start(
            "--head",
            f"--port={self._gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--temp-dir={self.folder}",
            f"--num-cpus={cpus}",
        )
        try:
            self._wait_for_dashboard()
        except BaseException:
            self.close()
            raise

    @property
    def gcs_address(self) -> str:
        """What a driver connects to."""
        return f"127.0.0.1:{self._gcs}"

    def scrape(self) -> str:
        """The metrics of all machines, from where Ray tells Prometheus to look."""
        text = ""
        targets = Path(self.folder, "prom_metrics_service_discovery.json").read_text()
        for target in json.loads(targets)[0]["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as reply:
                text += reply.read().decode()
        return text

    def add_raylet(self, *options: str) -> subprocess.Popen[bytes]:
        """Starts one more raylet."""
        n_before = self.n_nodes()
        process = self._start(f"--address={self.gcs_address}", *options)
        end = time.monotonic() + DEADLINE_S
        while self.n_nodes() <= n_before:
            assert time.monotonic() < end, "the raylet did not join in time"
            time.sleep(0.2)
        return process

    def n_nodes(self) -> int:
        """Machines that are alive."""
        request = urllib.request.Request(
            f"{self.address}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            summary = json.load(reply)["data"]["summary"]
        return sum(node["raylet"]["state"] == "ALIVE" for node in summary)

    def lose(self, process: subprocess.Popen[bytes]) -> None:
        """Kills a raylet with all that runs under it; returns when the cluster has noticed."""
        n_before = self.n_nodes()
        self._kill(process)
        end = time.monotonic() + DEADLINE_S
        while self.n_nodes() >= n_before:
            assert time.monotonic() < end, "the cluster did not notice in time"
            time.sleep(0.5)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        parent = psutil.Process(process.pid)
        for each in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    def close(self) -> None:
        """Ends everything, the head last, and removes its files."""
        for process in reversed(self._processes):
            if process.poll() is None:
                self._kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [
            self._ray,
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--object-store-memory=100000000",
            # By default all agents of a machine want the same port; who doesn't get it takes no
            # jobs, and a second cluster would have "no available agent".
            f"--dashboard-agent-listen-port={free_port()}",
            "--disable-usage-stats",
            *options,
        ]
        with open(f"{self.folder}/start.log", "ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def _wait_for_dashboard(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while True:
            with suppress(OSError):
                if self.n_nodes():
                    return
            assert self._processes[0].poll() is None, "the head has ended"
            assert time.monotonic() < end, "the dashboard did not come up in time"
            time.sleep(0.5)
