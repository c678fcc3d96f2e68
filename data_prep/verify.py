"""`python -m data_prep verify`: are the shards what the manifest says?"""

from pathlib import Path

from data_prep.shards import size_and_hash
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import Shard, corpus_hash, read_manifest
from diffusion_lm.errors import UserError


def verify(folder: Path) -> str:
    """Hash every shard again. Returns what to tell the person; raises `UserError` naming each shard that differs."""
    info = DatasetInfo.load(folder)
    shards = read_manifest(folder)
    wrong = [f"{shard.shard} ({problem})" for shard in shards if (problem := _problem(folder, shard))]
    listed = {shard.shard for shard in shards}
    wrong += [f"{path.name} (not in the manifest)" for path in sorted(folder.glob("*.tar")) if path.name not in listed]
    if wrong:
        found = f"{len(wrong)} wrong among {len(shards)} shards: {', '.join(wrong)}"
        raise UserError(f"{folder}: {found}; make the dataset again")
    if corpus_hash(info.content_facts(), shards) != info.corpus_hash:
        raise UserError(f"{folder}: manifest.jsonl and dataset.json do not belong together; make the dataset again")
    return f"{folder}: all {len(shards)} shards are what the manifest says; corpus hash {info.corpus_hash}"


def _problem(folder: Path, shard: Shard) -> str | None:
    path = folder / shard.shard
    if not path.is_file():
        return "missing"
    size, sha256 = size_and_hash(path)
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}"
    return None if sha256 == shard.sha256 else "content differs"
