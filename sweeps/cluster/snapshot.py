"""The code that a study or a run goes on with: a copy under ROOT/.code/HASH, whatever is edited meanwhile.

The name is the hash of what is in it, so any number of workers make one copy, whole or not at all, and studies of equal
code share it. A study's (or run's) file ``code`` names its copy. `enter` starts this process again from there:
PYTHONPATH comes before what pip installed, and PYTHONSAFEPATH keeps the working folder's packages out. Relative paths
(shards, runs) still mean the folder that the command was called in.
"""

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion_lm.errors import UserError
from diffusion_lm.files import atomic_folder, umask, write_json
from sweeps.cluster import provenance, slurm

HOME = Path(__file__).resolve().parents[2]
"""Where the code that runs now is."""
SITE = "env.sh"  # in SLURM/: the site's, perhaps with what others may not read
PARTS = ("diffusion_lm", "data_prep", "sweeps", "experiments", "SLURM")
COPIES, NAME = ".code", "code"
ENTERED = "DIFFUSION_LM_CODE"
"""Set to the hash in processes that run from a copy."""
RESTARTABLE = ("sweeps.__main__",)
OWN, NEW = "own", "new"
CHOICES = (OWN, NEW)
DIGITS = 16
ROOT, RUN = "--root", "run=DIR"
"""How a study is told to be in another folder, and how a single run is."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def current() -> str | None:
    """The hash of the copy that this process runs from; None for a working tree."""
    return HOME.name if HOME.parent.name == COPIES else None


def enter(folder: Path, root: Path, choice: str = OWN, elsewhere: str = ROOT) -> None:
    """Go on from the copy that `folder` (a study's or a run's) started with; `new`, or a first start, makes one.

    `elsewhere` is the command's way to name another folder, where this one takes no copy. Does not return where that
    copy is other code than what runs now. Raises `UserError` for a copy that is gone, that cannot be written, or that
    Python does not take.
    """
    if getattr(sys.modules["__main__"].__spec__, "name", None) not in RESTARTABLE:
        return  # a test, or another program that uses these functions: it cannot be started again
    entered = os.environ.get(ENTERED)
    own = recorded(folder) if choice == OWN or slurm.life() else None  # a job that was requeued took `new` before
    name = own or entered or take(root, elsewhere)
    place = (root / COPIES / name).resolve()
    if not (place / "sweeps").is_dir():
        raise UserError(f"{folder / NAME}: its code {place} is gone; bring it back, or go on with the code that is "
                        f"here: --code {NEW}")
    if place == HOME:
        return
    if entered == name:
        raise UserError(f"{place}: Python takes sweeps from {HOME} instead; see that nothing comes before PYTHONPATH")
    if not entered and own and own != digest(HOME):
        print(f"{folder}: goes on with the code it started with, {place}; the code here differs (--code {NEW} takes "
              "it)", flush=True)
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, ENTERED: name, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def record(folder: Path, choice: str = OWN) -> None:
    """Write down in `folder`, which exists, what code it goes on with. The first of several workers says it."""
    name = current()
    if name is None or recorded(folder) == name or (choice == OWN and recorded(folder)):
        return
    temporary = folder / f".{NAME}.{os.getpid()}"
    temporary.write_text(f"{name}\n")
    if choice == NEW:
        os.replace(temporary, folder / NAME)
        return
    try:
        os.link(temporary, folder / NAME)  # whole or not at all, and never over another's
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def recorded(folder: Path) -> str | None:
    """The hash of the copy that `folder` goes on with, if one was made."""
    try:
        return (folder / NAME).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def take(root: Path, elsewhere: str = ROOT) -> str:
    """Copy the code that runs now to ``ROOT/.code/HASH``, unless it is there. Returns the hash. Raises `UserError`."""
    if (name := current()) is not None:
        return name
    name = digest(HOME)
    place = root / COPIES / name
    try:
        if not place.is_dir():
            _copy(place)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another worker was faster
            room = "make room there, or " if error.errno in FULL else ""
            raise UserError(f"{place}: cannot be written ({error.strerror}); {room}name another folder by {elsewhere}"
                            ) from None
    return name


def digest(home: Path) -> str:
    """The hash of names and contents of all files that belong to the code in `home`."""
    total = hashlib.sha256()
    for path in _files(home):
        content = path.read_bytes()
        total.update(f"{path.relative_to(home).as_posix()}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:DIGITS]


def _copy(place: Path) -> None:
    with atomic_folder(place) as temporary:
        for path in _files(HOME):
            target = temporary / path.relative_to(HOME)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o444 & ~umask())  # nobody edits it by mistake; the name says what is in it
        facts = {"git": provenance.commit(), "from": str(HOME), "made": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(temporary / provenance.COPIED, facts)


def _files(home: Path) -> Iterator[Path]:
    """Files in a fixed order, without what Python and editors leave beside them."""
    for part in PARTS:
        for folder, names, files in os.walk(home / part):
            names[:] = sorted(name for name in names if not name.startswith((".", "__pycache__")))
            for name in sorted(files):
                if not name.startswith(".") and not name.endswith((".pyc", "~", ".out")) and name != SITE:
                    yield Path(folder) / name
