"""A real SLURM cluster on this machine: munged, slurmctld and several slurmd on the loopback interface.

It needs neither systemd nor cgroups nor root, lives in one directory and starts in about a second. Every daemon runs in
the foreground as a child of this process and dies with it, so stopping it stops exactly what it started. Debian and
Ubuntu packages: slurmctld slurmd slurm-client munge.

It can lose what real ones lose: a node with all that runs there (`fail`, `heal`), and SLURM itself, while jobs go on
(`lose_slurm`, `find_slurm`). Partitions: `main`; `short`, two minutes at most; `preempt`, whose jobs are requeued
when `main` needs their nodes.
"""

import contextlib
import ctypes
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel", "scontrol")
PR_SET_PDEATHSIG = 1
SEARCH = os.environ.get("PATH", "") + os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again; 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/log/%n.log
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Nodes may claim more processors and memory than this machine has.
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
# How long a client asks a controller that does not answer.
SlurmctldTimeout=1
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 RealMemory=8192 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=512
PartitionName=main Default=YES PriorityTier=10
PartitionName=short MaxTime=2 DefaultTime=1 PriorityTier=10
PartitionName=preempt PriorityTier=1
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


class Cluster:
    """Use as a context manager. `run` calls SLURM's clients on it."""

    def __init__(self, nodes: int = 3):
        self.nodes, self.user = nodes, getpass.getuser()
        # A short path: the name of a Unix socket may have about a hundred characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        self.environment = {**kept, "PATH": SEARCH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._configure()
            self._start("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket",
                        f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munged.pid",
                        f"--log-file={self.folder}/log/munged.log", f"--seed-file={self.folder}/munge.seed")
            self.until((self.folder / "munge.socket").exists, 10)
            self.find_slurm()
            self.until(lambda: len(self.nodes_in("idle")) == self.nodes, 30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ask("scancel", "--user", self.user)
        self._try_until(lambda: not self._ask("squeue", "-h"), 10)
        # munged last: without it the others wait for it while they end.
        self._stop([name for name in self.daemons if name != "munged"])
        self._stop(["munged"] if "munged" in self.daemons else [])
        self._kill(self._belongs_here)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, **more: object) -> str:
        """The output of a command that must succeed on the cluster."""
        more = {"env": self.environment, **more}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **more)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for `condition`; fail with the cluster's logs."""
        if not self._try_until(condition, seconds):
            logs = sorted((self.folder / "log").glob("*"))
            tails = "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in logs)
            raise AssertionError(f"the cluster did not get there in {seconds} s\n{tails}")

    def nodes_in(self, states: str) -> set[str]:
        """The nodes in one of `states`, for example ``idle,mix,alloc``."""
        return set(self._ask("sinfo", "-h", "-N", "-t", states, "-o", "%N").split())

    def fail(self, node: str) -> None:
        """The node loses power: its slurmd and all that runs there end at once. SLURM notices in 20 to 30 s."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        # Again until nothing is left: what is killed may have been starting something.
        self.until(lambda: not self._kill(lambda process: self._runs_on(process, node)), 10)

    def heal(self, node: str) -> None:
        """Switch a node on again."""
        if node not in self.daemons or self.daemons[node].poll() is not None:
            self._start(node, "slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def lose_slurm(self) -> None:
        """SIGKILL to the controller and to every node's daemon. Jobs run on, and nobody answers a question."""
        lost = [daemon for name, daemon in self.daemons.items() if name != "munged"]
        for daemon in lost:
            daemon.kill()
        for daemon in lost:
            daemon.wait()

    def find_slurm(self) -> None:
        """Start the controller, and every node's daemon that does not run, with the state they left."""
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self.until(lambda: "is UP" in self._ask("scontrol", "ping"), 20)
        for number in range(1, self.nodes + 1):
            self.heal(f"n{number}")

    def _configure(self) -> None:
        for name in ("log", "state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(random.randbytes(1024))
        port = _free_ports(self.nodes + 1)
        text = CONFIG.format(host=socket.gethostname().partition(".")[0], user=self.user, folder=self.folder,
                             port=port, first=port + 1, last=port + self.nodes, nodes=self.nodes)
        (self.folder / "slurm.conf").write_text(text)
        version = subprocess.run(["slurmd", "-V"], env=self.environment, capture_output=True, text=True).stdout
        year = int(version.split()[-1].partition(".")[0])
        # From 24.05 on slurmd can do without cgroups if it is told to; before, it does not know the word.
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if year >= 24 else 'autodetect'}\n")

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "wb") as log:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log,
                                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                                  start_new_session=True, preexec_fn=_die_with_us())

    def _stop(self, names: list[str]) -> None:
        for name in names:
            self.daemons[name].terminate()
        for name in names:
            try:
                self.daemons[name].wait(10)
            except subprocess.TimeoutExpired:
                self.daemons[name].kill()
                self.daemons[name].wait()

    def _ask(self, *command: str) -> str:
        """The output of a command that may fail, which counts as no output."""
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=10)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def _try_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _kill(self, doomed: Callable[[Path], bool]) -> int:
        """SIGKILL to the processes for which `doomed` is true; returns how many there were."""
        found = [path for path in Path("/proc").glob("[0-9]*") if doomed(path)]
        for path in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)
        return len(found)

    def _belongs_here(self, process: Path) -> bool:
        """Whether a process is left of a job: it carries this cluster's address, or is a step's daemon."""
        return f"SLURM_CONF={self.folder}/slurm.conf" in _environment(process) or self._steps_of(process, "*")

    def _runs_on(self, process: Path, node: str) -> bool:
        carried = _environment(process)
        here = {f"SLURM_CONF={self.folder}/slurm.conf", f"SLURMD_NODENAME={node}"} <= carried
        return here or self._steps_of(process, node)

    def _steps_of(self, process: Path, node: str) -> bool:
        """Whether a process is a step's daemon of `node`, which outlives its slurmd: known by the log that it holds."""
        try:
            return (process / "comm").read_text().startswith("slurmstepd") and any(
                Path(os.readlink(link)).match(f"{self.folder}/log/{node}.log") for link in (process / "fd").iterdir())
        except OSError:
            return False


def _die_with_us() -> Callable[[], None]:
    """What a daemon does before it starts: ask Linux to kill it when this process dies, however that happens."""
    libc = ctypes.CDLL(None)

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return before_exec


def _environment(process: Path) -> set[str]:
    try:
        return set((process / "environ").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return set()


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that the kernel gives to outgoing connections."""
    for _ in range(100):
        first = random.randrange(20000, 32000 - count)
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, candidate in enumerate(sockets):
                candidate.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for candidate in sockets:
                candidate.close()
    raise AssertionError("no free ports")
