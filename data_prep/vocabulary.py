"""`python -m data_prep get-vocabulary`: GPT-2's vocabulary where the tokenizer looks for it, its hash checked.

It comes from the address that tiktoken gets it from. Where that cannot be reached: the source distribution of the
Python package openai-whisper (MIT, 0.8 MB) carries it, so a package index, or a mirror of one, is enough; sites without
the internet have that. Nothing of the package is installed.
"""

import http.client
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from diffusion_lm.data.tokenizers import gpt2
from diffusion_lm.errors import RunError, UserError, unknown
from diffusion_lm.files import atomic_path

PACKAGE = "openai-whisper==20250625"
PATIENCE = 20.0  # seconds without a byte from the address
MEMBER = "whisper/assets/gpt2.tiktoken"
VOCABULARIES = ("gpt2",)


def get_vocabulary(name: str, source: Path | None = None, to: Path | None = None) -> str:
    """Put the vocabulary into `to` (by default where the tokenizer looks), from the file `source`, else from tiktoken's
    address or the package index.

    Returns what to tell the person. Raises `UserError` for a file with another content, `RunError` where neither
    address nor index serves it. A file that is there already is kept, or refused where it is another one.
    """
    if name not in VOCABULARIES:
        raise unknown("get-vocabulary: no vocabulary", name, VOCABULARIES)
    to = to or gpt2.own_place()
    if to.exists():
        gpt2.check(to, to.read_bytes())
        return f"{to}: is there already, and whole"
    content = _read(source) if source else _from_address() or _from_index()
    gpt2.check(source or Path(PACKAGE), content)
    with atomic_path(to) as temporary:
        temporary.write_bytes(content)
    return f"{to}: {len(content):,} bytes, sha256 {gpt2.SHA256}"


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise UserError(f"--from {source}: {error.strerror}; expected GPT-2's vocabulary") from None


def _from_address() -> bytes | None:
    """The vocabulary; None where the address cannot be reached or serves something else."""
    try:
        with urllib.request.urlopen(gpt2.ADDRESS, timeout=PATIENCE) as answer:
            content = answer.read()
        gpt2.check(Path(gpt2.ADDRESS), content)
    except (OSError, http.client.HTTPException, UserError):
        return None
    return content


def _from_index() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or len(archives) != 1:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RunError(
                f"get-vocabulary: {gpt2.ADDRESS} does not serve it, and pip download {PACKAGE} failed ({said}); get "
                "the file elsewhere and give it: python -m data_prep get-vocabulary gpt2 --from FILE"
            )
        with tarfile.open(archives[0]) as archive:
            member = next(member for member in archive if member.name.endswith(MEMBER))
            return archive.extractfile(member).read()
