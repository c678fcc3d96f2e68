"""`python -m data_prep download`: files over any protocol that fsspec speaks, whole under their own name or not at all.

A file grows piece by piece under a hidden name beside its place, so that an interrupted download goes on where it
stopped, also in another process. Then its size and, where published, its SHA-256 are checked, and it is renamed.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from data_prep.origins import NO_ANSWER, Origin, RemoteFile, failures
from diffusion_lm.errors import RunError, UserError
from diffusion_lm.files import fsync

PIECE = 16 * 2**20  # bytes asked for at a time: what a broken connection costs at most
TRIES = 5  # for one piece
PAUSE = 1.0  # seconds before the second try; doubled for each further one


def download(
    origin: Origin, folders: list[str], out: Path, *, dry_run: bool = False, jobs: int = 4, say: Callable[[str], None]
) -> None:
    """Bring the text files below `folders` of `origin` to the same paths below `out`; files that are there stay.

    Raises `UserError` before anything is written where a file that is there is another than published, `RunError` where
    server fails `TRIES` times in a row or a file is not what was published.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be 1 or more")
    files = _with_sizes(origin.files(folders), jobs)
    with ThreadPoolExecutor(jobs) as pool:  # what is there is hashed, where a hash is published
        there = list(pool.map(partial(_is_there, out=out), files))
    missing = [file for file, known in zip(files, there) if not known]
    if dry_run:
        for file in missing:
            say(f"{file.size if file.size is not None else 'unknown':>15}  {file.path}")
    total = sum(file.size or 0 for file in missing)
    say(f"{len(files)} files, {len(files) - len(missing)} of them there; {len(missing)} to get, {total:,} bytes")
    if not dry_run and missing:
        _fetch_all(missing, out, jobs, total)
        say(f"{len(missing)} files in {out}")


def fetch(file: RemoteFile, target: Path, advance: Callable[[int], None], stop: threading.Event) -> None:
    """Bring one file to `target`. `advance` hears of bytes as they come, those of an earlier attempt first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    system, path = fsspec.core.url_to_fs(file.url)
    if file.size is None:
        with failures(f"download: {file.url}"):
            system.get_file(path, str(part))
        advance(part.stat().st_size)
    else:
        _grow(part, file, lambda start, end: system.cat_file(path, start=start, end=end), advance, stop)
    if stop.is_set():
        return
    if file.sha256 and (got := _hash(part)) != file.sha256:
        part.unlink()
        raise RunError(
            f"download: {file.url} has sha256 {got[:16]}..., published is {file.sha256[:16]}...; it was thrown away: "
            "run the same command again"
        )
    fsync(part)
    os.replace(part, target)
    fsync(target.parent)


def _grow(
    part: Path,
    file: RemoteFile,
    read: Callable[[int, int], bytes],
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        part.unlink()
        have = 0
    advance(have)
    with part.open("ab") as out:
        while have < file.size and not stop.is_set():
            data = _piece(file, have, min(have + PIECE, file.size), read)
            out.write(data)
            out.flush()
            have += len(data)
            advance(len(data))


def _piece(file: RemoteFile, start: int, end: int, read: Callable[[int, int], bytes]) -> bytes:
    for attempt in range(TRIES):
        try:
            data = read(start, end)
            if len(data) == file.size:
                return data[start:]  # the server takes no ranges and sent the whole file: it is not asked again
            if len(data) == end - start:
                return data
            problem = f"{len(data)} bytes came, expected {end - start}"
        except NO_ANSWER as error:
            problem = f"{type(error).__name__} {error}"
        time.sleep(PAUSE * 2**attempt if attempt + 1 < TRIES else 0)
    raise RunError(
        f"download: {file.url} at byte {start} of {file.size}: {problem}, {TRIES} times; what came is kept: run the "
        "same command again to go on"
    )


def _fetch_all(files: list[RemoteFile], out: Path, jobs: int, total: int) -> None:
    stop = threading.Event()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task(f"{len(files)} files", total=total or None)
        advance = partial(progress.advance, bar)
        futures = [pool.submit(_fetch_or_stop, file, out / file.path, advance, stop) for file in files]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, OSError):  # of this machine: those of the server are told by then
                raise RunError(f"download: {error}; what came is kept: run the same command again to go on") from None
            raise


def _fetch_or_stop(file: RemoteFile, target: Path, advance: Callable[[int], None], stop: threading.Event) -> None:
    try:
        if not stop.is_set():
            fetch(file, target, advance, stop)
    except BaseException:
        stop.set()  # the others end at their next piece, or do not begin
        raise


def _with_sizes(files: list[RemoteFile], jobs: int) -> list[RemoteFile]:
    def known(file: RemoteFile) -> RemoteFile:
        if file.size is not None:
            return file
        with failures(f"download: {file.url}"):
            system, path = fsspec.core.url_to_fs(file.url)
            return replace(file, size=system.info(path).get("size"))

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(known, files))


def _is_there(file: RemoteFile, out: Path) -> bool:
    path = out / file.path
    if not path.exists():
        return False
    if file.size is not None and path.stat().st_size != file.size:
        raise UserError(
            f"{path}: has {path.stat().st_size} bytes, {file.url} has {file.size}; move it away, or give another --out"
        )
    if file.sha256 and (got := _hash(path)) != file.sha256:
        raise UserError(
            f"{path}: has sha256 {got[:16]}..., {file.url} is published with {file.sha256[:16]}...; move it away, or "
            "give another --out"
        )
    return True


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
