"""A process that has diffusion_lm imported and forks a child per command: half a second a run instead of seven.

Orders and answers are JSON lines. {"argv", "cwd", "out", "err", "faults", "limit", "world"} starts `python -m
diffusion_lm argv` and answers with its pid; {"pid"} answers with its exit status as subprocess gives it, or null while
it runs. A fault: at call number `call` of `place`, before or after it, the child sends itself a signal. `limit` is the
largest size in bytes of a file that it may write, or null. `world` processes run the command together, as a launcher
starts them.
"""

import atexit
import faulthandler
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from functools import wraps

from diffusion_lm.__main__ import main
from diffusion_lm.errors import run_command

HEAVY = ("training.train", "commands.train", "commands.evaluate", "commands.generate", "commands.describe")


def break_at(place, call, signal, when="before"):
    """Wrap `place` ("package.module:Class.method") so that its call number `call` sends this process a signal."""
    module, _, names = place.partition(":")
    owner = importlib.import_module(module)
    *path, name = names.split(".")
    for step in path:
        owner = getattr(owner, step)
    inner, calls = getattr(owner, name), 0

    @wraps(inner)
    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal)
        result = inner(*arguments, **options)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal)
        return result

    setattr(owner, name, wrapped)


def become(order):
    """Turn this forked child into the command."""
    os.chdir(order["cwd"])
    for number, (path, flags) in enumerate([(os.devnull, 0), (order["out"], os.O_WRONLY), (order["err"], os.O_WRONLY)]):
        os.dup2(os.open(path, flags), number)
    faulthandler.enable()  # where a crash in native code happened, for the message of the test
    if order["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    for fault in order["faults"]:
        break_at(**fault)


def join(world):
    """Become `world` processes that find each other; returns the pids of the others, to the first of them."""
    from lightning.pytorch.utilities import rank_zero_only

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    others = []
    for rank in range(1, world):
        others.append(os.fork())
        if not others[-1]:
            os.environ["LOCAL_RANK"], rank_zero_only.rank = str(rank), rank
            return []
    os.environ["LOCAL_RANK"], rank_zero_only.rank = "0", 0
    return others


def run(order):
    """The command, to what Python does when a program ends."""
    become(order)
    others = join(order["world"]) if order["world"] > 1 else []
    try:
        status = run_command(main, order["argv"])
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for pid in others:
        other = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        status = status or other
    return status or 0


def serve():
    """Answer orders until one makes this process a child; returns that order. Ends what still runs when orders end."""
    running = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            running.discard(pid)
        else:
            answer = os.fork()
            if not answer:
                return order
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return None


if __name__ == "__main__":
    for part in HEAVY:
        importlib.import_module(f"diffusion_lm.{part}")
    gc.freeze()
    print(json.dumps("ready"), flush=True)
    order = serve()
    status = run(order) if order else 0
    sys.stdout.flush()
    os._exit(status)  # freeing a copy of everything would take a second
