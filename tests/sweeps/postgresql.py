"""A PostgreSQL server for tests: in a temporary folder, on a Unix socket, dead with the thread that started it."""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

# Without fsync what is committed survives the server's death, not the machine's: enough here.
FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=60")
PR_SET_PDEATHSIG = 1


def binaries():
    """The folder of initdb and postgres (Debian keeps it off PATH); None if there is none."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in (*([Path(found).parent] if found else []), *folders)
                 if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


class PostgreSQL:
    """A running server; `url()` names a new, empty database in it."""

    def __init__(self):
        # Not pytest's folder: the name of a socket has room for about a hundred letters.
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.bin, self.numbers, self.server = binaries(), count(), None
        self.user = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            self.user = "nobody"
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)

    def __enter__(self):
        try:
            self._run("initdb", "--pgdata", self._data, "--username", "test", "--auth", "trust", "--no-sync",
                      "--encoding", "UTF8", "--no-locale")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self):
        return str(self.folder / "data")

    def start(self):
        """Start the server and wait until it answers."""
        options = [part for setting in (*FAST, "listen_addresses=", f"unix_socket_directories={self.folder}")
                   for part in ("-c", setting)]
        libc = ctypes.CDLL(None)
        with open(self.folder.with_suffix(".log"), "ab") as log:
            self.server = subprocess.Popen(
                [str(self.bin / "postgres"), "-D", self._data, *options], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd=self.folder, user=self.user, extra_groups=[] if self.user else None,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT))
        end = time.monotonic() + 30
        while not self._answers():
            assert self.server.poll() is None and time.monotonic() < end, self.folder.with_suffix(".log").read_text()
            time.sleep(0.05)

    def stop(self):
        """End the server at once, as a crash would."""
        if self.server is not None:
            self.server.send_signal(signal.SIGQUIT)
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
            self.server = None
        self.folder.with_suffix(".log").unlink(missing_ok=True)

    def url(self):
        """The URL of a new database."""
        import psycopg

        name = f"test{next(self.numbers)}"
        with psycopg.connect(host=str(self.folder), user="test", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://test@/{name}?host={self.folder}"

    def _answers(self):
        import psycopg

        try:
            psycopg.connect(host=str(self.folder), user="test", dbname="postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, name, *arguments):
        done = subprocess.run([str(self.bin / name), *arguments], cwd=self.folder, user=self.user, text=True,
                              extra_groups=[] if self.user else None, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
