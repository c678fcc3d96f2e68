"""The English documentation that every CPython carries: the language reference's topics and the library's docstrings.

Source files are parsed with `ast`, never imported. A document is a topic, or the docstrings of one module in the order
of the source: split by module, training and validation share few near-copies (methods of one class often read alike).
"""

import ast
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources import Source
from diffusion_lm.errors import UserError

SHORTEST_DOCSTRING = 200  # characters; shorter ones are labels rather than prose
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "lib-dynload", "__pycache__",
}  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class PythonDocs(Source):
    """Topics in the order of their names, then modules in the order of their paths. Differs between Python versions."""

    name = "python-docs"

    def __init__(self, root: Path | None = None):
        super().__init__()
        self.root = root or Path(sysconfig.get_path("stdlib"))

    def documents(self) -> Iterator[str]:
        """Topics, then modules that have at least one long docstring."""
        topics = self.root / "pydoc_data" / "topics.py"
        if not topics.is_file():
            raise UserError(f"--source python-docs: no {topics}; this Python came without its library's source")
        yield from _topics(topics)
        for path in _source_files(self.root):
            if path != topics:
                yield from self._module(path)

    def facts(self) -> dict:
        """The Python whose library is read."""
        return {"python": f"{platform.python_implementation()} {platform.python_version()}"}

    def unchanged(self, facts: dict) -> bool:
        """Always: the documentation of another Python serves as well, and the corpus hash tells them apart."""
        return True

    def _module(self, path: Path) -> Iterator[str]:
        try:
            texts = docstrings(_parse(path))
        except (SyntaxError, ValueError, OSError):
            self.notes["source files that cannot be parsed, skipped"] += 1
            return
        if long := [text for text in texts if len(text) >= SHORTEST_DOCSTRING]:
            yield "\n\n".join(long) + "\n"


def docstrings(tree: ast.Module) -> list[str]:
    """The docstrings of a module, its classes and functions, dedented, in the order of the source."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]  # get_docstring applies inspect.cleandoc


def _topics(path: Path) -> Iterator[str]:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "topics":
            topics = ast.literal_eval(node.value)
            yield from (topics[name] for name in sorted(topics))


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        return ast.parse(path.read_bytes())


def _source_files(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name not in SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))
