"""Where documents come from. A source yields texts in a fixed order and counts what it left out."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from diffusion_lm.errors import UserError, did_you_mean


class Source(ABC):
    """Documents as Unicode texts."""

    name: str  # what `--source` says, a path made absolute

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()  # what was skipped or mended, and how often; filled by `documents`

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """One text per document. Raises `UserError` for a file that cannot be read."""

    @abstractmethod
    def facts(self) -> dict:
        """What tells a changed source from an unchanged one, cheaply. Stored in dataset.json."""

    def unchanged(self, facts: dict) -> bool:
        """Whether a dataset made from this source when it had `facts` still serves."""
        return facts == self.facts()


def open_source(spec: str) -> Source:
    """The source that `--source` names: ``python-docs`` or a path. Raises `UserError` when it holds nothing to read."""
    from data_prep.python_docs import PythonDocs
    from data_prep.text_files import TextFiles

    named = {PythonDocs.name: PythonDocs}
    if spec in named:
        return named[spec]()
    path = Path(spec)
    if not spec or not path.exists():
        hint = did_you_mean(spec, named)
        raise UserError(f"--source '{spec}': no such file or folder; expected {', '.join(named)} or a path{hint}")
    return TextFiles(path)
