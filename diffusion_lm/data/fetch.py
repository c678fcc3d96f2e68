"""Bytes of a URL into a file: http(s), file, webdataset's ``pipe:COMMAND``, and what fsspec knows (s3, gs, hf, ...)."""

import http.client
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from diffusion_lm.errors import RunError

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20
PIPE = "pipe:"


class NotFetched(RunError):
    """A URL that does not give its bytes."""


def is_remote(place: str) -> bool:
    """Whether a dataset's place is a URL."""
    return "://" in place or place.startswith(PIPE)


def join(place: str, name: str) -> str:
    """The URL of a file of a dataset. A ``pipe:`` command has ``{}`` where the name belongs.

    Raises `NotFetched` for a name that a shell would take for more than a name.
    """
    if place.startswith(PIPE) and not re.fullmatch(r"[\w./+=-]+", name, re.ASCII):
        raise NotFetched(f"{place}: will not be run with the name {name!r}; expected letters, digits and ./_+=-")
    return place.replace("{}", name) if place.startswith(PIPE) else f"{place.rstrip('/')}/{name}"


def fetch(url: str, path: Path) -> None:
    """Write what `url` gives to `path`. Raises `NotFetched`."""
    try:
        with path.open("wb") as target:
            _reader(url)(url, target)
    except (OSError, ValueError, ImportError, http.client.HTTPException) as error:
        raise NotFetched(f"{url}: cannot be fetched ({str(error) or type(error).__name__})") from None


def _reader(url: str):
    scheme = PIPE if url.startswith(PIPE) else urlsplit(url).scheme
    return {"http": _http, "https": _http, "file": _file, PIPE: _pipe}.get(scheme, _fsspec)


def _http(url: str, target: BinaryIO) -> None:
    # not by fsspec: its event loop runs in a thread, which a forked reading process does not have
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        shutil.copyfileobj(answer, target, CHUNK)


def _file(url: str, target: BinaryIO) -> None:
    with open(unquote(urlsplit(url).path), "rb") as source:
        shutil.copyfileobj(source, target, CHUNK)


def _pipe(url: str, target: BinaryIO) -> None:
    done = subprocess.run(["bash", "-c", url.removeprefix(PIPE)], stdout=target, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise OSError(f"exit status {done.returncode}: {done.stderr.decode(errors='replace').strip()}")


def _fsspec(url: str, target: BinaryIO) -> None:
    import fsspec

    with fsspec.open(url, "rb") as source:
        shutil.copyfileobj(source, target, CHUNK)
