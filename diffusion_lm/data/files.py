"""Where the files of a dataset are: in a folder of this machine, or behind a URL with a bounded cache before it."""

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_lm.data.fetch import NotFetched, fetch, join
from diffusion_lm.data.manifest import DATASET_FILE, MANIFEST_FILE, is_inside
from diffusion_lm.errors import UserError
from diffusion_lm.files import atomic_path

TRIES = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as the manifest tells it."""

    name: str
    bytes: int
    sha256: str


class Files(ABC):
    """Finds files by name."""

    remote: bool

    @abstractmethod
    def find(self, wanted: Wanted) -> Path:
        """Where the file is, or would be, on this machine."""

    def renew(self, wanted: Wanted) -> None:  # noqa: B027 - local files are what there is
        """Have a copy that is not what the manifest tells fetched again."""

    def prefetch(self, wanted: Sequence[Wanted]) -> None:  # noqa: B027 - local files need nothing
        """Have files there before they are asked for."""


class LocalFiles(Files):
    """Files of a folder."""

    remote = False

    def __init__(self, folder: Path, root: str = ""):
        """`root`: where the shards lie, when not in `folder`."""
        self._folder, self._root = folder, folder / root

    def find(self, wanted: Wanted) -> Path:
        """See the contract."""
        return (self._root if wanted.name.endswith(".tar") else self._folder) / wanted.name


class CachedFiles(Files):
    """Files behind `url`, copied into `folder` when first asked for, or ahead of that by a thread.

    A copy has its size and hash checked and appears whole or not at all; processes that share the folder fetch each
    file once. When the folders beside it hold more than `limit` bytes together, the files that were not used for the
    longest go: those that are mapped stay readable until they are let go. A thread belongs to the process that
    started it, and is not pickled.
    """

    remote = True

    def __init__(self, url: str, folder: Path, limit: float):
        self.url, self.folder, self.limit = url, folder, limit
        self._queue: queue.SimpleQueue | None = None
        self._owner = 0

    def find(self, wanted: Wanted) -> Path:
        """See the contract. Raises `NotFetched` when the file cannot be had as the manifest tells it."""
        path = self.folder / wanted.name
        with contextlib.suppress(OSError):
            if path.stat().st_size == wanted.bytes:
                os.utime(path)
                return path
        with _held(path.with_name(f".{path.name}.lock")):
            if not path.exists() or path.stat().st_size != wanted.bytes:
                self._bring(wanted, path)
        self._make_room(keep=path)
        return path

    def renew(self, wanted: Wanted) -> None:
        """See the contract. A copy stays, damaged as it is, where no other can be had."""
        path = self.folder / wanted.name
        with contextlib.suppress(NotFetched), _held(path.with_name(f".{path.name}.lock")):
            try:
                _check(str(path), path, wanted)
            except (NotFetched, FileNotFoundError):
                print(f"data: {path} is damaged or gone; fetched again", file=sys.stderr, flush=True)
                self._bring(wanted, path)

    def prefetch(self, wanted: Sequence[Wanted]) -> None:
        """See the contract. What fails here fails again, and is told, when the file is asked for."""
        if self._queue is None or self._owner != os.getpid():
            self._queue, self._owner = queue.SimpleQueue(), os.getpid()
            threading.Thread(target=self._serve, args=(self._queue,), daemon=True).start()
        self._queue.put(list(wanted))

    def _serve(self, requests: queue.SimpleQueue) -> None:
        while True:
            for wanted in requests.get():
                with contextlib.suppress(NotFetched, OSError):
                    self.find(wanted)

    def _bring(self, wanted: Wanted, path: Path) -> None:
        url = join(self.url, wanted.name)
        for attempt in range(TRIES):
            try:
                with atomic_path(path) as temporary:
                    fetch(url, temporary)
                    _check(url, temporary, wanted)
                return
            except NotFetched:
                if attempt == TRIES - 1:
                    raise

    def _make_room(self, keep: Path) -> None:
        with _held(self.folder.parent / ".room.lock"):
            found = []
            for path in self.folder.parent.glob("*/[!.]*.tar*"):  # not locks, nor what is being fetched
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total > self.limit and path != keep:
                    path.unlink(missing_ok=True)
                    total -= size

    def __reduce__(self):
        return CachedFiles, (self.url, self.folder, self.limit)


def cache_root(asked: str) -> Path:
    """The folder of all cached datasets."""
    return Path(asked or os.environ.get("DIFFUSION_LM_CACHE") or Path.home() / ".cache" / "diffusion_lm")


def cached_facts(url: str, root: Path) -> Path:
    """The folder in the cache for the dataset behind `url`, with its `dataset.json` and manifest in it.

    It carries the corpus hash, so that another dataset at the same URL has another folder. Where the URL gives nothing,
    the folder of the last time is told and used: shards that are in it need no URL. Raises `UserError`.
    """
    root.mkdir(parents=True, exist_ok=True)
    last = root / f".{hashlib.sha256(url.encode()).hexdigest()[:24]}.last"
    try:
        folder = _fetched_facts(url, root)
    except NotFetched as error:
        folder = root / last.read_text(encoding="utf-8") if last.is_file() else root
        if not (folder / DATASET_FILE).is_file():
            raise UserError(f"data.path: {error}; expected the URL of a folder with {DATASET_FILE} in it") from None
        print(f"data: {error}; going on with the copy in {folder}", file=sys.stderr, flush=True)
        return folder
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{join(url, DATASET_FILE)}: not the facts of a dataset ({error!r}); check the URL") from None
    with atomic_path(last) as temporary:
        temporary.write_text(folder.name, encoding="utf-8")
    return folder


def _fetched_facts(url: str, root: Path) -> Path:
    fresh = root / f".{os.getpid()}.{threading.get_ident()}.json"
    try:
        fetch(join(url, DATASET_FILE), fresh)
        content = fresh.read_bytes()
    finally:
        fresh.unlink(missing_ok=True)
    facts = json.loads(content)
    name, told = facts.get("manifest", MANIFEST_FILE), facts.get("manifest_sha256", "")
    if not is_inside(name) or not re.fullmatch("[0-9a-f]{64}", facts["corpus_hash"]):
        raise ValueError("a manifest's name or a corpus hash that cannot be")
    folder = root / f"{Path(facts['name']).name}-{facts['corpus_hash'][:16]}"
    manifest = folder / name
    if not manifest.exists() or (told and hashlib.sha256(manifest.read_bytes()).hexdigest() != told):
        with atomic_path(manifest) as temporary:
            fetch(join(url, name), temporary)
    with atomic_path(folder / DATASET_FILE) as temporary:
        temporary.write_bytes(content)
    return folder


def _check(url: str, path: Path, wanted: Wanted) -> None:
    size = path.stat().st_size
    if size != wanted.bytes:
        raise NotFetched(f"{url}: gave {size} bytes, the manifest says {wanted.bytes}; put the right file there")
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != wanted.sha256:
            raise NotFetched(f"{url}: its content is not what the manifest says; put the right file there")


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
