"""Where DCLM-baseline lies, and which files a part of it has: the layout of its global and local shards.

    global-shard_01_of_10 .. 10_of_10 / local-shard_0_of_10 .. 9_of_10 / shard_00000000_processed.jsonl.zstd ...

An origin is a base address under which that layout stands. The Hugging Face hub publishes size and SHA-256 of every
file; elsewhere the size is what the server says, and no hash is published. Files that were replaced (`_old`) are left
out.
"""

import json
import os
import re
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from data_prep.text_files import REPLACED, reader_of
from diffusion_lm.errors import RunError, UserError

GLOBAL_SHARDS, LOCAL_SHARDS = range(1, 11), range(10)
HUB = "https://huggingface.co"
HUB_DATASET = "mlfoundations/dclm-baseline-1.0"
COMMON_CRAWL = "https://data.commoncrawl.org/contrib/datacomp/DCLM-baseline"
NO_ANSWER = Exception
"""What is raised for a server that cannot be reached or says no, and for a scheme whose package is missing: every
protocol's package has its own errors (aiohttp's, httpx's, botocore's), which share no other class."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """path: below the base, and below the folder it is brought to. size, sha256: None where not published."""

    path: str
    url: str
    size: int | None
    sha256: str | None = None


class Origin(ABC):
    """A place that has DCLM's layout."""

    @abstractmethod
    def below(self, folder: str) -> list[RemoteFile]:
        """All files below `folder`, a path below the base ("" for the base itself)."""

    def files(self, folders: list[str]) -> list[RemoteFile]:
        """The text files below `folders`, without replaced ones, in order. Raises `UserError` for one that has none."""
        found = []
        for folder in folders:
            texts = [file for file in self.below(folder) if _is_text(file.path)]
            if not texts:
                raise UserError(
                    f"download: no text file below '{folder or '.'}' of {self}; name another folder or --from"
                )
            found += texts
        if outside := [file.path for file in found if ".." in PurePosixPath(file.path).parts or file.path[0] == "/"]:
            raise UserError(f"download: {self} lists '{outside[0]}', which lies outside of it; expected paths below")
        return sorted(found, key=lambda file: file.path)


class Hub(Origin):
    """A dataset repository of the Hugging Face hub, or of a mirror of it, by its listing of files."""

    def __init__(self, endpoint: str | None = None, dataset: str = HUB_DATASET, revision: str = "main"):
        endpoint = endpoint or os.environ.get("HF_ENDPOINT") or HUB
        self.endpoint, self.dataset, self.revision = endpoint.rstrip("/"), dataset, revision

    def below(self, folder: str) -> list[RemoteFile]:
        """Page by page, with sizes and hashes."""
        url = f"{self.endpoint}/api/datasets/{self.dataset}/tree/{self.revision}/{folder}?recursive=true&limit=1000"
        found, seen = [], set()
        while url and url not in seen:
            seen.add(url)
            entries, url = _page(url)
            found += [self._file(entry) for entry in entries if entry["type"] == "file"]
        return found

    def _file(self, entry: dict[str, Any]) -> RemoteFile:
        path, large = entry["path"], entry.get("lfs") or {}
        url = f"{self.endpoint}/datasets/{self.dataset}/resolve/{self.revision}/{path}"
        return RemoteFile(path, url, large.get("size", entry["size"]), large.get("oid"))

    def __str__(self) -> str:
        return f"{self.endpoint}/datasets/{self.dataset}"


class Base(Origin):
    """Any address that fsspec can list: a folder, s3://, gs://, an HTTP server with an index page."""

    def __init__(self, base: str):
        self.base = base.rstrip("/")

    def below(self, folder: str) -> list[RemoteFile]:
        """What the file system finds, with sizes where it knows them."""
        with failures(f"download: {self.base}"):
            system, root = fsspec.core.url_to_fs(self.base)
            place = f"{root}/{folder}".rstrip("/")
            try:
                found = system.find(place, detail=True, on_error="raise")  # by default it takes no answer for no file
            except FileNotFoundError:
                return []
        return [self._file(name, facts, root) for name, facts in sorted(found.items())]

    def _file(self, name: str, facts: dict[str, Any], root: str) -> RemoteFile:
        path = name.removeprefix(root).lstrip("/")
        return RemoteFile(path, f"{self.base}/{path}", facts.get("size"))

    def __str__(self) -> str:
        return self.base


class PathList(Origin):
    """A server that lists no folders but publishes a file of all paths, perhaps gzipped, as Common Crawl does.
    The name of Common Crawl's own list is from a script of others and was not tried."""

    def __init__(self, base: str, listing: str):
        self.base, self.listing = base.rstrip("/"), listing

    def below(self, folder: str) -> list[RemoteFile]:
        """The lines of the list that lie below `folder` of the base, wherever their paths begin."""
        with failures(f"download: {self.listing}"), fsspec.open(self.listing, "rt", compression="infer") as lines:
            paths = [line.strip() for line in lines if line.strip()]
        tail = self.base.rsplit("/", 1)[-1] + "/"
        paths = [path.partition(tail)[2] if tail in path else path for path in paths]
        return [RemoteFile(path, f"{self.base}/{path}", None) for path in paths if path.startswith(folder)]

    def __str__(self) -> str:
        return self.listing


def open_origin(where: str, listing: str | None = None) -> Origin:
    """What `--from` names: ``hub``, ``commoncrawl``, or a base address; `listing` replaces the listing of folders."""
    named = {"hub": Hub, "commoncrawl": lambda: PathList(COMMON_CRAWL, listing or f"{COMMON_CRAWL}.paths.gz")}
    if where in named:
        return named[where]()
    return PathList(where, listing) if listing else Base(where)


def shard_folders(global_shards: list[int], local_shards: list[int]) -> list[str]:
    """The folders of the layout; all local shards where none is named."""
    return [
        f"global-shard_{number:02d}_of_10/local-shard_{local}_of_10"
        for number in global_shards
        for local in (local_shards or LOCAL_SHARDS)
    ]


def parse_numbers(option: str, text: str, allowed: range) -> list[int]:
    """``1,3-5`` or ``all``. Raises `UserError` for anything else, and for numbers that are not there."""
    wanted: list[int] = []
    try:
        for piece in text.split(",") if text != "all" else [f"{allowed[0]}-{allowed[-1]}"]:
            first, _, last = piece.partition("-")
            wanted += range(int(first), int(last or first) + 1)
    except ValueError:
        wanted = []
    if not wanted or not set(wanted) <= set(allowed):
        raise UserError(f"{option} {text}: expected numbers from {allowed[0]} to {allowed[-1]}, like 1,3-5, or all")
    return sorted(set(wanted))


@contextmanager
def failures(what: str) -> Iterator[None]:
    """A server that cannot be reached, or says no, in one line that begins with `what`."""
    try:
        yield
    except (UserError, RunError):
        raise
    except NO_ANSWER as error:
        raise RunError(f"{what}: {type(error).__name__} {error}; check the address and the network") from None


def _page(url: str) -> tuple[list[dict[str, Any]], str | None]:
    with failures(f"download: {url}"), urllib.request.urlopen(url, timeout=60) as answer:
        after = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link", ""))
        return json.load(answer), after and after[1]


def _is_text(path: str) -> bool:
    name = PurePosixPath(path)
    return reader_of(name) is not None and not REPLACED.fullmatch(name.name)
