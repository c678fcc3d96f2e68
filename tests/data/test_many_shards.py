"""Twenty thousand shards: few are open at a time, and memory does not grow with what was read."""

import hashlib
import io
import json
import os
import pickle
import tarfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.manifest import Shard, corpus_hash, manifest_text
from diffusion_lm.data.shard_index import OPEN_SHARDS

LENGTH, ROWS, DIFFERENT = 16, 3, 50


def tiny(rows):
    """A tar of one record, without the padding that tar adds, and the place of its data."""
    stream, array = io.BytesIO(), io.BytesIO()
    np.save(array, rows)
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("000000.tokens.npy")
        member.size = array.tell()
        tar.addfile(member, io.BytesIO(array.getvalue()))
    return stream.getvalue()[: 512 + 512 + 1024], 512 + 128


def row(number):
    return np.random.default_rng(number % DIFFERENT).integers(0, 257, (ROWS, LENGTH))


@pytest.fixture
def many(make_shards, texts, tmp_path):
    """A dataset of so many shards; there are `DIFFERENT` contents, and the others are links to them."""

    def make(count, dtype="<u2"):
        facts = json.loads((make_shards(texts, f"small{dtype}", length=LENGTH) / "dataset.json").read_text())
        folder = tmp_path / f"many{dtype}"
        folder.mkdir()
        contents = []
        for number in range(DIFFERENT):
            rows = row(number).astype(dtype)
            content, offset = tiny(rows)
            crcs = b"".join(zlib.crc32(one.tobytes()).to_bytes(4, "little") for one in rows)
            (folder / f"{number}").write_bytes(content)
            (folder / f"{number}.sums").write_bytes(crcs)
            contents.append((content, offset, crcs, hashlib.sha256(content).hexdigest()))
        shards = []
        for number in range(count):
            content, offset, crcs, sha256 = contents[number % DIFFERENT]
            name = f"train-{number:06d}.tar"
            os.link(folder / f"{number % DIFFERENT}", folder / name)
            os.link(folder / f"{number % DIFFERENT}.sums", folder / f"{name}.crc32")
            shards.append(Shard(shard=name, split="train", num_sequences=ROWS, records=1, bytes=len(content),
                                sha256=sha256, offsets=[offset], crc=f"{name}.crc32",
                                crc_sha256=hashlib.sha256(crcs).hexdigest()))  # fmt: skip
        names = ("version", "tokenizer", "tokenizer_fingerprint", "vocab_size", "eot_id", "packing", "split_rule")
        facts |= {"length": LENGTH, "dtype": dtype, "manifest_sha256": "", "facts_sha256": ""}
        content_facts = {name: facts[name] for name in (*names, "length", "dtype", "val_fraction")}
        facts["corpus_hash"] = corpus_hash(content_facts, shards)
        (folder / "manifest.jsonl").write_text(manifest_text(shards))
        (folder / "dataset.json").write_text(json.dumps(facts))
        assert asdict(shards[0])["crc"]
        return folder

    return make


def resident():
    """Bytes of this process's own memory: without mapped files, which the system may drop at any time."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_rows_of_either_width(many, dtype):
    tokens = ShardedTokens(many(120, dtype), "train")
    indices = np.random.default_rng(0).permutation(len(tokens))
    wanted = np.concatenate([row(number) for number in range(120)])
    assert np.array_equal(tokens.read(indices).rows, wanted[indices])


def read_batches(tokens, count, seed):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        indices = generator.integers(0, len(tokens), 4)
        rows = tokens.read(indices).rows
        assert rows[3].tolist() == row(int(indices[3]) // ROWS)[indices[3] % ROWS].tolist()


@pytest.mark.parametrize("shards, count", [(2000, 200), pytest.param(20_000, 10_000, marks=pytest.mark.slow)])
def test_memory_stays_flat(many, shards, count):
    tokens = ShardedTokens(many(shards), "train")
    assert len(pickle.dumps(tokens)) < shards * 300  # the index: two names and two hashes a shard, as text
    read_batches(tokens, 200, 1)
    files, before = len(os.listdir("/proc/self/fd")), resident()
    read_batches(tokens, count, 2)
    assert len(tokens._open) == OPEN_SHARDS
    assert len(os.listdir("/proc/self/fd")) <= files + 2
    assert resident() - before < 4 * 2**20
