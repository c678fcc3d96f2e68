"""What an evaluation leaves: a manifest that says how each number was made, the curves, the sequences' bounds."""

import csv
import io
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusion_lm.config import name_of
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.floor import floor_facts
from diffusion_lm.evaluation.levels import curves_csv, draw_curves
from diffusion_lm.evaluation.likelihood import Difference, Estimate, Scores, metrics
from diffusion_lm.evaluation.load import LoadedRun
from diffusion_lm.evaluation.recall import Recall
from diffusion_lm.evaluation.sequences import SequenceSet
from diffusion_lm.files import write_json, write_text
from diffusion_lm.kind import CACHE, Kind
from diffusion_lm.training.result import git_commit

PACKAGES = ("torch", "lightning", "numpy", "omegaconf")


@dataclass(frozen=True)
class Evaluation:
    """Runs (one or two) that were scored on a set of sequences with the same seed and draws."""

    runs: tuple[LoadedRun, ...]
    data: SequenceSet
    draws: int
    seed: int
    scores: tuple[Scores, ...]
    difference: Difference | None = None
    recalls: tuple[Recall | None, ...] = (None, None)

    def labels(self) -> list[str]:
        """A name per run that tells them apart."""
        names = [Path(run.folder).resolve().name for run in self.runs]
        return names if len(set(names)) == len(names) else [f"{name} ({ab})" for name, ab in zip(names, "AB")]


def results(run: LoadedRun, scores: Scores, data: SequenceSet, recall: Recall | None = None) -> dict[str, Any]:
    """A run's numbers, nats per token unless the name says otherwise."""
    found = metrics(scores, data.bytes_per_token)
    return {
        "run": run.folder,
        "step": run.step,
        "process": name_of(run.config.process),
        "objective": name_of(run.config.objective),
        "exact": run.objective.exact,
        "kind": run.objective.kind().given_ends(data.ends is not None).to_dict(),
        **found,
        **floor_facts(found["val/nll"], data.entropy_rate),
        **(recall.facts() if recall else {}),
        "terms": {name: float(rows.mean()) for name, rows in scores.terms.items()},
        "beside": {name: asdict(Estimate.of(rows)) for name, rows in scores.beside.items()},
        "cross_entropy_by_noise_level": dict(scores.curve().points()),
        "weights": _weights(run),
        "corpus": run.info.corpus_hash,
    }


def manifest(done: Evaluation) -> dict[str, Any]:
    """How it was done, and what came out."""
    scores = done.scores[0]
    made: dict[str, Any] = {
        **done.data.facts,
        "sequences": len(scores.nll),
        "tokens_scored": int(scores.tokens.sum()),
        "places": "all" if len(scores.nll) == done.data.facts["sequences_in_set"] else done.data.places.tolist(),
        "draws": done.draws,
        "seed": done.seed,
        "precision": done.runs[0].precision,
        "device": done.runs[0].device.type,
        "git": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "runs": [results(run, found, done.data, recall)
                 for run, found, recall in zip(done.runs, done.scores, done.recalls)],
    }
    if done.difference is not None:
        made["difference"] = difference_facts(done)
    return made


def difference_facts(done: Evaluation) -> dict[str, Any]:
    """B - A, and how far it may be read."""
    found = done.difference
    a, b = (run.objective.kind().given_ends(done.data.ends is not None) for run in done.runs)
    return {
        "comparable": a.compares(b),
        "nll": found.nll.mean,
        "nll_se": found.nll.standard_error,
        "share_of_sequences_lower": found.better_share,
        "common_noise_levels": found.common_levels,
        "caution": caution(a, b),
    }


def caution(a: Kind, b: Kind) -> str | None:
    """Why a difference between two numbers may not be one between likelihoods."""
    if a.exact != b.exact:
        return f"one number is exact and the other a bound ({a}; {b}), whose slack is part of the difference"
    if a != b:
        return f"bounds of different kinds ({a}; {b}) have different slack: the lower one need not be better"
    keys = dict.fromkeys(key for kind in (a, b) for key in kind.depends_on if not kind.exact or key == CACHE)
    other = [name for name in keys if a.depends_on.get(name) != b.depends_on.get(name)]
    said = [found for found in dict.fromkeys((a.caution, b.caution)) if found and CACHE in other]
    if of_slack := [name for name in other if name != CACHE]:
        said.append(f"the bounds depend on {' and '.join(of_slack)}, which differs: slack is part of the difference")
    return "; ".join(said) or None


def write(done: Evaluation, folder: Path) -> None:
    """manifest.json (last: its presence means complete), curve.csv, curve.png, sequences.csv."""
    curves = {
        name: scores.curve()
        for name, run, scores in zip(done.labels(), done.runs, done.scores)
        if not run.objective.exact  # nothing is drawn, there are no levels
    }
    try:
        write_text(folder / "sequences.csv", _sequences(done))
        if curves:
            write_text(folder / "curve.csv", curves_csv(curves))
            draw_curves(curves, folder / "curve.png")
        write_json(folder / "manifest.json", manifest(done))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another folder with --out DIR") from None


def check_writable(folder: Path) -> None:
    """Refuse a folder that results cannot be written to, before they are computed."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "is not writable" if there.is_dir() else "is a file"
        raise UserError(f"{folder}: results cannot be written there ({there} {why}); give a folder with --out DIR")


def _sequences(done: Evaluation) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("place", *(f"nats_per_token {name}" for name in done.labels())))
    table.writerows(zip(done.data.places.tolist(), *(scores.nll.tolist() for scores in done.scores)))
    return out.getvalue()


def _weights(run: LoadedRun) -> dict[str, Any]:
    return {"averaged": run.ema > 0, "ema_decay": run.ema}
