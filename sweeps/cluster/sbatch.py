"""What sbatch would be asked for: the options in a script, over them the environment's, over them those typed."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lm.errors import UserError

LETTERS = {"a": "array", "p": "partition", "A": "account", "N": "nodes", "n": "ntasks", "t": "time",
           "c": "cpus-per-task", "q": "qos", "C": "constraint", "J": "job-name", "o": "output", "G": "gpus"}
VARIABLES = {"SBATCH_ARRAY_INX": "array", "SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account",
             "SBATCH_QOS": "qos", "SBATCH_CONSTRAINT": "constraint", "SBATCH_TIMELIMIT": "time", "SBATCH_GPUS": "gpus",
             "SBATCH_GPUS_PER_NODE": "gpus-per-node", "SBATCH_JOB_NAME": "job-name", "SBATCH_GRES": "gres"}


def options(script: Path, typed: str = "", environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Options by their long names; the value is '' for one without. Raises `UserError` for a word that is none."""
    lines = script.read_text().splitlines()
    own = [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    given = {option: environment[name] for name, option in VARIABLES.items() if name in environment}
    return {**_read(own), **given, **_read(shlex.split(typed))}


def line(found: Mapping[str, str], script: Path, arguments: Sequence[str]) -> str:
    """The command as a person would type it with every option spelled out."""
    words = [f"--{name}={value}" if value else f"--{name}" for name, value in found.items()]
    return shlex.join(["sbatch", *words, str(script), *arguments])


def width(found: Mapping[str, str]) -> int:
    """How many array tasks may run at once; 1 without an array. Raises `UserError`."""
    text = found.get("array", "0")
    tasks, _, limit = text.partition("%")
    total = 0
    for part in tasks.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None or (limit and not limit.isdigit()):
            raise UserError(f"--array: got '{text}', expected tasks like 0-15, 0-15%4 or 1,3,5")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        total += len(range(first, last + 1, max(1, step)))
    return max(1, min(total, int(limit)) if limit else total)


def devices(found: Mapping[str, str]) -> int | None:
    """The tasks of one job, each a device of its trial; None where the options do not say. Raises `UserError`."""
    if not {"nodes", "ntasks-per-node", "ntasks"} & set(found):
        return None
    if "ntasks-per-node" not in found and "ntasks" in found:
        return _number(found, "ntasks")
    return _number(found, "nodes") * _number(found, "ntasks-per-node")


def _number(found: Mapping[str, str], name: str) -> int:
    text = found.get(name, "1")
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise UserError(f"--{name}: got '{text}', expected one number from 1 on, like --{name}=2")
    return int(text)


def _read(words: Sequence[str]) -> dict[str, str]:
    found, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("--"):
            takes = not equals and rest and not rest[0].startswith("-")
        elif word.startswith("-") and word[1:2] in LETTERS:
            name, value = LETTERS[word[1]], word[2:]
            takes = not value and bool(rest)
        else:
            raise UserError(f"--sbatch: got '{word}', expected options of sbatch, like --array=0-15 --time=24:00:00")
        found[name] = rest.pop(0) if takes else value
    return found
