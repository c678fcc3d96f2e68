"""Dashboards as processes on loopback: started on free ports, told to the reader, ended together."""

import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from diffusion_lm.errors import RunError
from sweeps.cluster import slurm
from sweeps.work.child import CTRL_C, FINISHED, Stop, die_with_parent

HOST = "127.0.0.1"  # neither page asks who one is
PATIENCE = 120  # seconds until a page answers; a cold shared disk is slow
POLL = 0.2
GRACE = 5  # seconds to end


@dataclass(frozen=True, slots=True)
class Page:
    """A server: how it is started, given ``--host`` and ``--port``."""

    title: str
    command: tuple[str, ...]


def tensorboard(folder: Path) -> Page:
    """TensorBoard over `folder`; a requeued run has several files of events."""
    return Page("TensorBoard", (sys.executable, "-m", "tensorboard.main", "--logdir", str(folder.absolute()),
                                "--reload_multifile=true"))


def optuna(storage: str, artifacts: Path) -> Page:
    """Optuna's dashboard on a journal file or a database's URL, with the files that are attached to trials."""
    with suppress(OSError):  # of somebody else's study, who attached none
        artifacts.mkdir(exist_ok=True)
    more = ("--artifact-dir", str(artifacts.absolute())) if artifacts.is_dir() else ()
    main = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"
    return Page("Optuna dashboard", (sys.executable, "-c", main, storage, "--quiet", *more))


def run(pages: Sequence[Page], folder: Path) -> int:
    """Serve `pages` until a signal; what they say goes into a file in `folder`, for it would bury what is told here;
    the file stays where one of them failed.

    Returns the exit status. Raises `RunError` if one of them ends by itself.
    """
    stop = Stop()
    stop.install()
    ports = _free_ports(len(pages))
    log = _log(folder)
    with open(log, "ab") as said:
        servers = [_start(page, port, said) for page, port in zip(pages, ports)]
    try:
        for page, port, server in zip(pages, ports, servers):
            _await(page, port, server, stop, log)
        if stop.signal is None:
            print(_told(pages, ports), flush=True)
        while stop.signal is None:
            time.sleep(POLL)
            for page, server in zip(pages, servers):
                if server.poll() is not None:
                    raise _ended(page, server, log)
    finally:
        _end(servers)
    log.unlink(missing_ok=True)
    return CTRL_C if stop.signal is signal.SIGINT else FINISHED


def _log(folder: Path) -> Path:
    """A file for what the servers say: in the system's folder where the study's is somebody else's."""
    place = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    return place / f"dashboard-{socket.gethostname()}-{os.getpid()}.log"


def _ended(page: Page, server: subprocess.Popen[bytes], log: Path) -> RunError:
    return RunError(f"{page.title} ended with status {server.returncode}; what it said is in {log}")


def _start(page: Page, port: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    # A group of its own: TensorBoard starts a process that reads its files.
    return subprocess.Popen([*page.command, "--host", HOST, "--port", str(port)], stdin=subprocess.DEVNULL,
                            stdout=said, stderr=said, process_group=0, preexec_fn=die_with_parent(signal.SIGKILL))


def _await(page: Page, port: int, server: subprocess.Popen[bytes], stop: Stop, log: Path) -> None:
    """Wait until the page answers, or a signal comes."""
    end = time.monotonic() + PATIENCE
    while stop.signal is None:
        if server.poll() is not None:
            raise _ended(page, server, log)
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise RunError(f"{page.title} does not answer after {PATIENCE} s; what it said is in {log}") from None
        time.sleep(POLL)


def _told(pages: Sequence[Page], ports: Sequence[int]) -> str:
    """Where the pages are, and what to type on one's own machine."""
    lines = [f"{page.title:<18}http://{HOST}:{port}" for page, port in zip(pages, ports)]
    user, node = getpass.getuser(), slurm.node() or socket.gethostname()
    login = os.environ.get("SLURM_SUBMIT_HOST") if slurm.node() else None
    jump = f"-J {user}@{login} " if login and login != node else ""
    tunnels = " ".join(f"-L {port}:{HOST}:{port}" for port in ports)
    return "\n".join([*lines, f"from your own machine: ssh -N {jump}{tunnels} {user}@{node}",
                      "then open the addresses above there"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for candidate in sockets:
            candidate.bind((HOST, 0))
        return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()


def _end(servers: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the servers and what they started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for server in servers:
            try:
                os.killpg(server.pid, number)
            except ProcessLookupError:
                continue
        end = time.monotonic() + GRACE
        while number is signal.SIGTERM and time.monotonic() < end and any(s.poll() is None for s in servers):
            time.sleep(0.05)
    for server in servers:
        server.wait()
