"""Shards behind a URL: the folder's rows, each file fetched once, checked, and given up when room is short."""

import functools
import http.server
import itertools
import json
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.fetch import NotFetched, join
from diffusion_lm.data.files import CachedFiles, Wanted
from diffusion_lm.data.info import DatasetInfo, TokenDataConfig, data_facts
from diffusion_lm.data.manifest import read_manifest
from diffusion_lm.data.open import open_order, open_tokens
from diffusion_lm.data.reader import DamagedData
from diffusion_lm.errors import UserError


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts, records_per_shard=1)


@pytest.fixture
def server(folder):
    """The folder over HTTP; `asked` counts requests by name, `spoil` names answers that are cut the first n times."""
    state = SimpleNamespace(asked=Counter(), spoil=Counter())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            state.asked[name] += 1
            if state.spoil[name]:
                state.spoil[name] -= 1
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                return
            super().do_GET()

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/"

    def close():
        httpd.shutdown()
        httpd.server_close()

    state.close = close
    yield state
    close()


def config_of(url, tmp_path, **options):
    return TokenDataConfig(**{"path": url, "length": 32, "cache": str(tmp_path / "cache"), **options})


def test_the_same_rows_each_file_once(server, folder, tmp_path):
    config = config_of(server.url, tmp_path)
    assert data_facts(config).corpus_hash == data_facts(config_of(str(folder), tmp_path)).corpus_hash
    tokens, local = open_tokens(config, "train"), ShardedTokens(folder, "train")
    order = np.random.default_rng(0).permutation(len(local))
    assert np.array_equal(tokens.read(order).rows, local.read(order).rows)
    open_tokens(config, "train").read(order)
    shards = {name: count for name, count in server.asked.items() if ".tar" in name}
    assert set(shards.values()) == {1} and len(shards) == 2 * len(list(folder.glob("train-*.tar")))


@pytest.mark.parametrize("scheme", ["file", "pipe", "memory"])
def test_other_schemes(folder, tmp_path, scheme):
    import fsspec

    if scheme == "memory":
        for path in folder.iterdir():
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
    urls = {"file": f"file://{folder}", "pipe": f"pipe:cat '{folder}/{{}}'", "memory": f"memory://{tmp_path.name}"}
    tokens = open_tokens(config_of(urls[scheme], tmp_path), "val")
    assert np.array_equal(tokens[3], ShardedTokens(folder, "val")[3])


def test_a_cut_answer_is_fetched_again_and_told_when_it_stays(server, folder, tmp_path):
    name = "train-000000.tar"
    server.spoil[name] = 2
    tokens = open_tokens(config_of(server.url, tmp_path), "train")
    assert np.array_equal(tokens[0], ShardedTokens(folder, "train")[0]) and server.asked[name] == 3
    server.spoil["train-000001.tar"] = 99
    with pytest.raises(NotFetched, match=r"train-000001\.tar: gave \d+ bytes, the manifest says \d+; put the"):
        tokens[64]
    assert not list((tmp_path / "cache").rglob("train-000001.tar")) and not list((tmp_path / "cache").rglob("*.tmp"))


def test_other_content_of_the_same_size_is_refused(server, folder, tmp_path):
    path = folder / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(NotFetched, match=r"train-000000\.tar: its content is not what the manifest says"):
        open_tokens(config_of(server.url, tmp_path), "train")[0]


@pytest.mark.parametrize("suffix", ["", ".crc32"])
def test_a_damaged_copy_is_fetched_again(server, folder, tmp_path, suffix, capfd):
    wanted = ShardedTokens(folder, "train")
    open_tokens(config_of(server.url, tmp_path), "train")[0]
    copy = next((tmp_path / "cache").rglob(f"train-000000.tar{suffix}"))
    content = bytearray(copy.read_bytes())
    content[700 if not suffix else 1] ^= 1
    copy.write_bytes(content)
    other = open_tokens(config_of(server.url, tmp_path), "train")  # as another process: it has the damaged copy mapped
    tokens = open_tokens(config_of(server.url, tmp_path), "train")
    assert np.array_equal(tokens.read([70, 0, 1]).rows, wanted.read([70, 0, 1]).rows)
    assert np.array_equal(other[0], wanted[0])
    name = f"train-000000.tar{suffix}"
    assert server.asked[name] == 2 and f"{name} is damaged or gone; fetched again" in capfd.readouterr().err
    copy.write_bytes(content)
    server.spoil[name] = 99
    with pytest.raises(DamagedData, match=r"train-000000\.tar, record 0, row 0"):
        open_tokens(config_of(server.url, tmp_path), "train")[0]


def test_a_mixture_s_damaged_copy_is_fetched_again(server, folder, tmp_path):
    config = config_of("", tmp_path, sources={str(folder): 1.0, server.url: 1.0})
    wanted = ShardedTokens(folder, "train")
    first = len(wanted)
    open_tokens(config, "train")[first]
    copy = next((tmp_path / "cache").rglob("train-000000.tar"))
    content = bytearray(copy.read_bytes())
    content[700] ^= 1
    copy.write_bytes(content)
    assert np.array_equal(open_tokens(config, "train").read([3, first]).rows, wanted.read([3, 0]).rows)


def test_what_is_cached_is_read_without_the_server(server, folder, tmp_path, capfd):
    config, wanted = config_of(server.url, tmp_path), ShardedTokens(folder, "val")
    tokens = open_tokens(config, "val")
    everything = np.arange(len(wanted))
    tokens.read(everything)
    server.close()
    assert np.array_equal(open_tokens(config, "val").read(everything).rows, wanted.read(everything).rows)
    assert "going on with the copy in" in capfd.readouterr().err
    with pytest.raises(NotFetched, match=r"train-000000\.tar: cannot be fetched"):
        open_tokens(config, "train")[0]


@pytest.mark.parametrize("field", ["shard", "crc"])
@pytest.mark.parametrize("name", ["../../x.tar", "/tmp/x.tar", "a/../../x.tar", ".."])
def test_names_outside_the_folder_are_refused(server, folder, tmp_path, field, name):
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {field: name}
    (folder / "manifest.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]))
    for place in (server.url, str(folder)):
        with pytest.raises(UserError, match=r"manifest\.jsonl: (names a file|and dataset\.json do not)"):
            read_manifest(DatasetInfo.load(place, cache=str(tmp_path / "cache")).path)
    assert not list(tmp_path.rglob("x.tar*"))


def test_a_manifest_or_hash_outside_the_folder_and_a_name_for_a_shell_are_refused(server, folder, tmp_path):
    facts = json.loads((folder / "dataset.json").read_text())
    for change in ({"manifest": "../m"}, {"corpus_hash": "../../../../up"}):
        (folder / "dataset.json").write_text(json.dumps(facts | change))
        with pytest.raises(UserError, match=r"not the facts of a dataset .*that cannot be"):
            open_tokens(config_of(server.url, tmp_path), "train")
    with pytest.raises(NotFetched, match="will not be run with the name"):
        join("pipe:cat '{}'", f"'; touch {tmp_path}/made; '")


def test_many_at_once_fetch_a_file_once(server, folder, tmp_path):
    shard = open_tokens(config_of(server.url, tmp_path), "train").index.wanted(0)[0]
    place = tmp_path / "shared" / "data"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: CachedFiles(server.url, place, 1e9).find(shard), range(8)))
    assert len(set(found)) == 1 and found[0].read_bytes() == (folder / shard.name).read_bytes()
    assert server.asked[shard.name] == 1


def test_the_longest_unused_go_when_room_is_short(server, folder, tmp_path):
    paths = [folder / f"train-{number:06d}.tar" for number in range(3)]
    index = open_tokens(config_of(server.url, tmp_path), "train").index
    wanted = [one for number in range(3) for one in index.wanted(number)]
    sizes = [path.stat().st_size for path in paths]
    place = tmp_path / "small" / "data"
    files = CachedFiles(server.url, place, float(sizes[0] + sizes[1] + 3000))
    for age, one in enumerate(wanted[:4]):
        os.utime(files.find(one), ns=(age, age))
    files.find(wanted[0])  # used again
    files.find(wanted[4])
    assert sorted(path.name for path in place.glob("*.tar")) == [paths[0].name, paths[2].name]


def test_training_in_blocks_holds_few_shards_and_gives_the_order_s_rows(server, folder, tmp_path, make_module):
    local = ShardedTokens(folder, "train")
    shard = max(path.stat().st_size for path in folder.glob("*.tar"))
    options = {"shuffle": "blocks", "block_shards": 1, "cache": str(tmp_path / "cache"), "cache_gb": 3.2 * shard / 1e9}
    config = config_of(server.url, tmp_path, **options)
    order = open_order(config, open_tokens(config, "train"), 3)
    wanted = {p: local[order.index_at(p)].tolist() for p in range(len(local))}
    seen, most = {}, 0
    for rank in range(2):
        module = make_module(server.url, rank=rank, world=2, workers=rank, **options)
        for batch in itertools.islice(iter(module.train_dataloader()), len(local) // 16 * 2):
            seen |= dict(zip(batch["position"].tolist(), batch["tokens"].tolist()))
            most = max(most, len(list((tmp_path / "cache").rglob("train-*.tar"))))
    assert seen == {p: wanted[p] for p in range(len(local) // 16 * 16)}
    assert most <= 4 < len(list(folder.glob("train-*.tar")))


def test_shards_are_there_ahead_of_use(server, folder, tmp_path):
    config = config_of(server.url, tmp_path, shuffle="blocks", block_shards=1)
    tokens = open_tokens(config, "train")
    order = open_order(config, tokens, 3)
    tokens.prefetch(order.soon(0))
    names = {tokens.index.names[int(tokens.index.shards_of(np.array([index]))[0])] for index in order.soon(0)}
    assert len(names) == 2
    deadline = threading.Event()
    for _ in range(200):
        if names <= {path.name for path in (tmp_path / "cache").rglob("train-*.tar")}:
            break
        deadline.wait(0.05)
    assert names == {path.name for path in (tmp_path / "cache").rglob("train-*.tar")}


@pytest.mark.parametrize("shuffle", ["sequences", "blocks"])
def test_a_cache_that_is_too_small_is_refused(server, tmp_path, shuffle):
    config = config_of(server.url, tmp_path, shuffle=shuffle, cache_gb=1e-6)
    told = {"sequences": "all train shards take .*; set data.shuffle=blocks", "blocks": "two blocks of 16 shards take"}
    with pytest.raises(UserError, match=rf"data\.cache_gb: got 1e-06, but {told[shuffle]}"):
        open_tokens(config, "train")


def test_nothing_there(server, tmp_path, folder):
    with pytest.raises(UserError, match=r"data\.path: http.*/other/dataset\.json: cannot be fetched \(HTTP Error 404"):
        open_tokens(config_of(server.url + "other", tmp_path), "train")
    shutil.copy(folder / "manifest.jsonl", folder / "dataset.json")
    with pytest.raises(UserError, match=r"dataset\.json: not the facts of a dataset .*; check the URL"):
        open_tokens(config_of(server.url, tmp_path), "train")
    with pytest.raises(NotFetched, match="cannot be fetched"):
        CachedFiles("nosuch://x", tmp_path / "a" / "b", 1e9).find(Wanted("x.tar", 1, ""))
