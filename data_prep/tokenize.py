"""`python -m data_prep tokenize`: a large text into shards, on all cores of a machine or the tasks of a job array.

Every task, and every process of a task, takes whole parts (`plan.py`); what is there already is left alone, so the same
command goes on after any interruption. Whoever finds that all parts are there makes the dataset.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial

from data_prep.build import nearest_folder
from data_prep.merge import held, merge
from data_prep.parts import read_part, write_part
from data_prep.plan import Part, Plan, TokenizeSettings, make_plan
from data_prep.text_files import UnreadableFile
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import DATASET_FILE, INCOMPLETE_FILE
from diffusion_lm.data.tokenizers.base import Tokenizer, load_tokenizer
from diffusion_lm.errors import RunError, UserError


def tokenize(
    settings: TokenizeSettings, *, processes: int = 1, task: int = 0, tasks: int = 1, on_bad_file: str = "error",
    say: Callable[[str], None] = print,
) -> DatasetInfo | None:  # fmt: skip
    """Make the parts `task`, `task` + `tasks`, ... that are not there, then the dataset if all are: its facts, or None.
    A file that cannot be read to its end is an error, or with `on_bad_file` "skip" left out, counted and told.

    Raises `UserError` for bad input, with nothing written by it, and `RunError` when a process dies.
    """
    if processes < 1 or not 0 <= task < tasks:
        raise UserError(
            f"--processes {processes} --task {task} --tasks {tasks}: expected 1 or more, and 0 <= task < tasks"
        )
    tokenizer = load_tokenizer(settings.tokenizer)
    tokenizer.prepare()
    plan = make_plan(settings, tokenizer)
    nearest_folder(settings.out)
    if (settings.out / DATASET_FILE).exists():
        return _existing(plan, say)
    plan = plan.keep(say)
    (settings.out / INCOMPLETE_FILE).touch()
    for what, count in plan.notes.items():
        say(f"{count} {what}")
    with held(plan.folder):
        mine = [part for part in plan.parts[task::tasks] if read_part(plan, part) is None]
        say(f"{len(plan.parts)} parts; this task makes {len(mine)}")
        one = partial(_one, plan, name=settings.tokenizer, skip_bad_files=on_bad_file == "skip")
        try:
            for line in _make(one, mine, processes):
                say(line)
        except UnreadableFile as error:
            raise UserError(f"{error}, then run the same command; or leave it out: --on-bad-file skip") from None
    if missing := sum(read_part(plan, part) is None for part in plan.parts):
        say(f"{missing} parts are left to other tasks; the last one makes {settings.out / DATASET_FILE}")
        return None
    return merge(settings.out, settings.tokenizer)


def _existing(plan: Plan, say: Callable[[str], None]) -> DatasetInfo:
    info = DatasetInfo.load(plan.out)
    if not info.parts:
        raise UserError(f"{plan.out}: holds a dataset made by another command; give another --out")
    plan.check_same()
    say(f"{plan.out} already holds this dataset; nothing written")
    return info


def _make(one: Callable[[Part], str], parts: list[Part], processes: int) -> Iterator[str]:
    if processes == 1 or len(parts) < 2:
        yield from map(one, parts)
        return
    # a spawned process imports no more than it needs; the largest first, so that none is left alone with a large one
    order = sorted(parts, key=lambda part: (-part.bytes, part.number))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(parts)), mp_context=context) as pool:
        try:
            futures = [pool.submit(one, part) for part in order]
            for future in futures:
                yield future.result()
        except BrokenProcessPool:
            raise RunError(
                "tokenize: a process died, perhaps for want of memory; whole parts stay: run the same command again, "
                f"with fewer than {processes} --processes"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _one(plan: Plan, part: Part, *, name: str, skip_bad_files: bool) -> str:
    start = time.perf_counter()
    record = write_part(plan, part, _tokenizer(name), skip_bad_files=skip_bad_files)
    tokens = sum(split.tokens for split in record.splits.values())
    documents = sum(split.documents for split in record.splits.values())
    skipped = "".join(f"; {count} {what}" for what, count in record.notes.items())
    return f"part {part.name}: {documents:,} documents, {tokens:,} tokens, {time.perf_counter() - start:.1f} s{skipped}"


@cache
def _tokenizer(name: str) -> Tokenizer:
    """Read once per process: a vocabulary may take longer than a small part."""
    return load_tokenizer(name)
