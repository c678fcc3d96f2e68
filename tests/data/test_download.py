"""Downloads from servers on this machine and from a folder, laid out like DCLM: whole files or none, and going on."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_prep import download as module
from data_prep.download import download, fetch
from data_prep.origins import Base, Hub, PathList, RemoteFile, open_origin, parse_numbers, shard_folders
from diffusion_lm.errors import RunError, UserError

DATASET = "mlfoundations/dclm-baseline-1.0"
NAMES = [
    f"global-shard_{g:02d}_of_10/local-shard_{local}_of_10/shard_{n:08d}_processed.jsonl.zstd"
    for g in (1, 10)
    for local in (0, 5)
    for n in range(3)
]
REPLACED = "global-shard_10_of_10/local-shard_5_of_10/shard_00000001_processed_old.jsonl.zstd"
FILES = {name: hashlib.sha256(name.encode()).digest() * 500 for name in [*NAMES, REPLACED]}
FILES["README.md"] = b"card"


class Server(ThreadingHTTPServer):
    """Ranges, index pages, the hub's listing in pages of four; `breaks` answers are cut off in mid-file."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.breaks, self.ranges, self.files, self.asked = 0, True, dict(FILES), []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, query = self.path.lstrip("/").partition("?")
        if path.startswith("api/"):
            return self.listing(
                path.partition("/tree/main/")[2], int((query.partition("cursor=")[2] or "0").split("&")[0])
            )
        name = re.sub(rf"^(base/|datasets/{DATASET}/resolve/main/)", "", path)
        if name in self.server.files:
            return self.file(name)
        below = sorted({rest.split("/")[0] for rest in self.below(name.rstrip("/"))})
        self.answer(200 if below else 404, "".join(f'<a href="{entry}">x</a>' for entry in below).encode(), "text/html")

    def below(self, folder):
        prefix = f"{folder}/" if folder else ""
        return [name.removeprefix(prefix) for name in self.server.files if name.startswith(prefix)]

    def listing(self, folder, cursor):
        names = sorted(name for name in self.server.files if name.startswith(folder))
        entries = [
            {"type": "file", "path": name, "size": 130, "oid": "git",
             "lfs": {"oid": hashlib.sha256(FILES[name]).hexdigest(), "size": len(FILES[name])}}
            for name in names[cursor : cursor + 4]
        ]  # fmt: skip
        more = f"{self.server.url}/{self.path.lstrip('/').split('&cursor')[0]}&cursor={cursor + 4}"
        link = {"Link": f'<{more}>; rel="next"'} if cursor + 4 < len(names) else {}
        self.answer(200, json.dumps(entries).encode(), "application/json", **link)

    def file(self, name):
        data, asked = self.server.files[name], self.headers.get("Range")
        if asked and self.server.ranges:
            start, end = map(int, asked.removeprefix("bytes=").split("-"))
            self.server.asked.append((name, start))
            part = data[start : end + 1]
            about = {"Content-Range": f"bytes {start}-{end}/{len(data)}", "Accept-Ranges": "bytes"}
            return self.answer(206, part, "application/octet-stream", cut=start > 0, **about)
        self.server.asked.append((name, None))
        self.answer(200, data, "application/octet-stream")

    def answer(self, status, data, kind, cut=False, **headers):
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and self.server.breaks > 0:
            self.server.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 5000)
    monkeypatch.setattr(module, "PAUSE", 0.01)


def get(origin, out, global_shards=(1, 10), local_shards=(0, 5), **options):
    said = []
    download(origin, shard_folders(list(global_shards), list(local_shards)), out, say=said.append, **options)
    return said


def brought(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def wanted(names):
    return {name: FILES[name] for name in names}


def test_the_hub_in_pages_over_broken_connections(server, tmp_path):
    server.breaks = 7
    said = get(Hub(server.url), tmp_path / "out", jobs=3)
    assert said[0] == f"12 files, 0 of them there; 12 to get, {12 * 16000:,} bytes"
    assert brought(tmp_path / "out") == wanted(NAMES), "all, hashes right, and no replaced file"
    assert server.breaks == 0
    assert get(Hub(server.url), tmp_path / "out")[0] == "12 files, 12 of them there; 0 to get, 0 bytes"


def test_a_download_that_was_given_up_goes_on_at_its_byte(server, tmp_path):
    server.breaks = 10**6
    with pytest.raises(RunError, match=r"at byte 5000 of 16000: .*, 5 times; what came is kept: run the same command"):
        get(Hub(server.url), tmp_path / "out", (1,), (0,), jobs=1)
    assert list(brought(tmp_path / "out")) == [NAMES[0].replace("shard_0000", ".shard_0000") + ".part"]
    server.breaks, server.asked = 0, []
    get(Hub(server.url), tmp_path / "out", (1,), (0,), jobs=1)
    assert brought(tmp_path / "out") == wanted(NAMES[:3])
    assert [start for name, start in server.asked if name == NAMES[0]] == [5000, 10000, 15000]


def test_a_file_that_is_not_what_was_published(server, tmp_path):
    server.files[NAMES[1]] = bytes(reversed(FILES[NAMES[1]]))
    with pytest.raises(RunError, match=r"shard_00000001_processed.* published is .*; it was thrown away: run the same"):
        get(Hub(server.url), tmp_path / "out", (1,), (0,), jobs=1)
    assert NAMES[1] not in brought(tmp_path / "out")
    server.files[NAMES[1]] = FILES[NAMES[1]]
    get(Hub(server.url), tmp_path / "out", (1,), (0,))
    assert brought(tmp_path / "out") == wanted(NAMES[:3])


def test_dry_run_lists_files_and_bytes(server, tmp_path):
    said = get(Hub(server.url), tmp_path / "out", (10,), (5,), dry_run=True)
    assert [line.split() for line in said[:-1]] == [["16000", name] for name in NAMES[9:]]
    assert said[-1] == "3 files, 0 of them there; 3 to get, 48,000 bytes"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_with_index_pages(server, tmp_path, ranges):
    server.ranges = ranges
    get(Base(f"{server.url}/base"), tmp_path / "out", (10,), (5,))
    assert brought(tmp_path / "out") == wanted(NAMES[9:])


def test_a_server_without_ranges_is_asked_for_a_file_once(server, tmp_path):
    server.ranges = False
    file = RemoteFile(NAMES[0], f"{server.url}/base/{NAMES[0]}", 16000)
    fetch(file, tmp_path / "file", lambda count: None, threading.Event())
    assert (tmp_path / "file").read_bytes() == FILES[NAMES[0]] and server.asked == [(NAMES[0], None)]


def test_a_file_there_with_other_content_than_published(server, tmp_path):
    get(Hub(server.url), tmp_path / "out", (1,), (0,))
    path = tmp_path / "out" / NAMES[1]
    path.write_bytes(bytes(reversed(FILES[NAMES[1]])))
    with pytest.raises(UserError, match=r"shard_00000001.* is published with [0-9a-f]{16}\.\.\.; move it away"):
        get(Hub(server.url), tmp_path / "out", (1,), (0,))
    assert path.read_bytes() == bytes(reversed(FILES[NAMES[1]]))


def test_a_server_with_a_list_of_paths(server, tmp_path):
    lines = "".join(f"contrib/datacomp/base/{name}\n" for name in FILES)
    (tmp_path / "paths").write_text(lines)
    origin = open_origin(f"{server.url}/base", str(tmp_path / "paths"))
    assert isinstance(origin, PathList)
    get(origin, tmp_path / "out", (1,), (5,))
    assert brought(tmp_path / "out") == wanted(NAMES[3:6])


def test_a_folder_laid_out_like_dclm_as_a_person_types_it(data_prep, refused, tmp_path):
    for name, data in FILES.items():
        (tmp_path / "dclm" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dclm" / name).write_bytes(data)
    command = ["download", "--from", tmp_path / "dclm", "--out", "out"]
    result = data_prep(*command, "--global-shard", "1,10", "--local-shard", "0,5")
    assert result.returncode == 0 and "12 files in out" in result.stdout, result
    assert brought(tmp_path / "out") == wanted(NAMES)
    result = data_prep("download", "--from", f"file://{tmp_path}/dclm", "--out", "all")
    assert result.returncode == 0 and brought(tmp_path / "all") == wanted(NAMES), result
    (tmp_path / "out" / NAMES[0]).write_bytes(b"other")
    line = refused(*command)
    assert f"{NAMES[0]}: has 5 bytes" in line and "has 16000; move it away, or give another --out" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--global-shard is missing; expected numbers from 1 to 10, or all (some 7 TB in 27,900 files)"),
        (["--global-shard", "0-2"], "--global-shard 0-2: expected numbers from 1 to 10, like 1,3-5, or all"),
        (["--global-shard", "1", "--local-shard", "ten"], "--local-shard ten: expected numbers from 0 to 9"),
        (["--from", ".", "--global-shard", "2"], "no text file below 'global-shard_02_of_10/local-shard_0_of_10'"),
        (["--from", ".", "--jobs", "0"], "--jobs 0: must be 1 or more"),
    ],
)
def test_bad_input(refused, arguments, text):
    assert text in refused("download", "--out", "out", *arguments)


def test_a_server_that_is_not_there(data_prep):
    result = data_prep("download", "--from", "http://127.0.0.1:9/base", "--out", "out")
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result
    assert "check the address and the network" in result.stderr


def test_paths_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "paths").write_text("../evil.jsonl\n")
    with pytest.raises(UserError, match=r"lists '\.\./evil\.jsonl', which lies outside of it"):
        download(PathList("file:///nowhere", str(tmp_path / "paths")), [""], tmp_path / "out", say=print)


def test_numbers():
    assert parse_numbers("--n", "1,3-5,4", range(1, 11)) == [1, 3, 4, 5]
    assert parse_numbers("--n", "all", range(3)) == [0, 1, 2]
    for text in ("", "5-1", "11", "1-11", "1,,2", "a"):
        with pytest.raises(UserError, match="expected numbers from 1 to 10"):
            parse_numbers("--n", text, range(1, 11))
