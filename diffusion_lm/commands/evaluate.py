"""evaluate RUN [RUN_B]: the bound, its standard error and bits per byte; two runs are compared by sequence."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.floor import ABOVE, ENTROPY_RATE
from diffusion_lm.evaluation.likelihood import check_comparable, difference, score
from diffusion_lm.evaluation.load import LoadedRun, load_run
from diffusion_lm.evaluation.ngrams import COMMON, NgramShares, ngram_shares
from diffusion_lm.evaluation.recall import measure_recall
from diffusion_lm.evaluation.record import Evaluation, check_writable, manifest, write
from diffusion_lm.evaluation.sequences import OWN, sequence_set
from diffusion_lm.evaluation.text import draw_tokens
from diffusion_lm.kind import Kind
from diffusion_lm.random import Noise


def run(arguments: argparse.Namespace) -> int:
    """Score, write the results, print them; exit status 0."""
    for name in ("samples", "seed"):
        if (getattr(arguments, name) or 0) < 0:
            raise UserError(f"{name}: got {getattr(arguments, name)}, expected 0 or more")
    folders = [folder for folder in (arguments.run, arguments.run_b) if folder is not None]
    runs = [load_run(folder, arguments.precision, arguments.ema) for folder in folders]
    if len(runs) > 1:
        check_comparable(*runs, own_data=arguments.data is None)
    data = sequence_set(runs[0].config.data, arguments.data, arguments.protocol, arguments.sequences, arguments.split)
    folder = _folder(arguments, data.name, runs)
    check_writable(folder)
    settings = runs[0].config.evaluation
    draws = settings.draws if arguments.draws is None else arguments.draws
    seed = settings.seed if arguments.seed is None else arguments.seed
    scores = [score(each, data, draws, seed) for each in runs]
    compared = difference(*runs, *scores) if len(runs) > 1 else None
    recalls = tuple(measure_recall(each, data, seed) for each in runs)
    done = Evaluation(tuple(runs), data, draws, seed, tuple(scores), compared, recalls)
    write(done, folder)
    shares = _shares(runs[0], arguments.samples) if arguments.samples else None
    facts = manifest(done)
    if arguments.json:
        common = {"common_3grams": asdict(shares)} if shares else {}
        print(json.dumps({**_flat(facts, done), **common, "out": str(folder)}, allow_nan=False))
        return 0
    for line in _lines(facts, done):
        print(line)
    if shares:
        print(
            f"  3-grams of {arguments.samples} samples that occur at least {COMMON} times in the training text: "
            f"{shares.samples:.1%} (a unigram sampler's {shares.unigram_sampler:.1%}, "
            f"validation text's {shares.validation_text:.1%})"
        )
    print(f"  written     {folder}")
    return 0


def _folder(arguments: argparse.Namespace, name: str, runs: list[LoadedRun]) -> Path:
    """Where the results go: one folder per data, precision and second run."""
    if arguments.out is not None:
        return Path(arguments.out)
    parts = [name] if arguments.precision == "float32" else [name, arguments.precision]
    parts += [] if arguments.ema is None else [f"ema-{arguments.ema:g}"]
    parts += [f"against-{Path(other.folder).resolve().name}" for other in runs[1:]]
    return Path(arguments.run) / "evaluation" / "-".join(parts)


def _shares(run: LoadedRun, samples: int) -> NgramShares:
    noise = Noise(run.config.evaluation.seed, torch.arange(samples, device=run.device))
    drawn = draw_tokens(run.model, run.config, noise, run.config.data.length).tokens
    return ngram_shares(drawn.cpu().numpy(), run.config.data, run.config.evaluation.seed)


def _flat(facts: dict[str, Any], done: Evaluation) -> dict[str, Any]:
    """The manifest for programs: the first run's numbers at the top."""
    first = facts["runs"][0]
    return {
        **first,
        "sequences": facts["sequences"],
        "tokens": facts["tokens_scored"],
        "draws": done.draws,
        "seed": done.seed,
        "precision": facts["precision"],
        "unigram_entropy": done.runs[0].info.unigram_entropy,
        "manifest": facts,
    }


def _lines(facts: dict[str, Any], done: Evaluation) -> list[str]:
    """The results as a person reads them."""
    lines = []
    for found, run in zip(facts["runs"], done.runs):
        lines += _run_lines(found, facts, run, done)
    if done.difference is not None:
        lines += _difference_lines(facts, done)
    data, protocol = facts["data"], facts["protocol"]
    lines.append(f"  data        {data['name']} {data['hash'][:12]}, {protocol['name']}: {protocol['boundary']}")
    counts = f"{facts['tokens_scored']:,} tokens scored"
    if facts["text_bytes_scored"] is not None:
        counts += f" ({facts['text_bytes_scored']:,} bytes of text, {facts['marks_scored']:,} end marks without any)"
    lines.append(f"  counts      {counts}, {facts['tokens_dropped']:,} left over at the end and dropped")
    if done.data.name != OWN:
        lines.append(f"  published   {facts['comparison']}")
    return lines + [f"  note        {note}" for note in done.data.notes]


def _run_lines(found: dict[str, Any], facts: dict[str, Any], run: LoadedRun, done: Evaluation) -> list[str]:
    what = "exact" if found["exact"] else "bound"
    at_most = "" if found["exact"] else "at most "
    noise = "" if found["exact"] else f", {done.draws} noise levels each"
    lines = [
        f"{run.folder} at step {run.step}, {found['process']} process, {facts['sequences']} sequences of "
        f"{done.data.length} tokens{noise}, {run.precision}",
        f"  {what}       {with_error(found['val/nll'], found['val/nll_se'])} nats per token "
        f"(perplexity {at_most}{found['val/ppl_bound']:.2f}, {found['val/bpb']:.4f} bits per byte)",
    ]
    lines += [f"    {name:<16}{value:.4f}" for name, value in found["terms"].items()]
    kind = Kind.of_result(found)
    more = "".join(f"; {name} {value}" for name, value in kind.depends_on.items())
    lines.append(f"  kind        {kind}{more}")
    lines += [f"  caution     {kind.caution}"] if kind.caution else []
    lines += [
        f"  beside      {name} {with_error(value['mean'], value['standard_error'])} nats per token"
        for name, value in found["beside"].items()
    ]
    lines.append(f"  unigram     {run.info.unigram_entropy:.4f} nats per token, the entropy of the corpus's tokens")
    lines += _known_source_lines(found, done)
    if not found["exact"]:
        curve = "  ".join(f"{level} {value:.2f}" for level, value in found["cross_entropy_by_noise_level"].items())
        lines.append(f"  nats per predicted token by noise level: {curve}")
    return lines


def _known_source_lines(found: dict[str, Any], done: Evaluation) -> list[str]:
    """The distance from the entropy rate, where the source is known, and recall, where the data ask for it."""
    lines = []
    if ABOVE in found:
        above = with_error(found[ABOVE], found["val/nll_se"], sign="+")
        lines.append(
            f"  floor       {found[ENTROPY_RATE]:.4f} nats per token, the entropy rate of the source; "
            f"{'exact' if found['exact'] else 'bound'} {above} from it"
        )
    if "recall/accuracy" in found:
        of_text, nats = found["recall/answers_of_nll"], found["recall/nats_per_answer"]
        share = "" if of_text is None else f", {of_text:.4f} nats per token of the text"
        lines += [
            f"  recall      {with_error(found['recall/accuracy'], found['recall/accuracy_se'])} of "
            f"{found['recall/answers']:,} answers ({found['recall/given']}); one in {1 / found['recall/chance']:.0f} "
            "by chance",
            f"  answers     {with_error(nats, found['recall/nats_per_answer_se'])} nats each (0 for a model that "
            f"recalls){share}",
        ]
    elif done.data.recall is not None:
        lines.append(f"  recall      not measured: the states of process '{found['process']}' are vectors, not tokens")
    return lines


def _difference_lines(facts: dict[str, Any], done: Evaluation) -> list[str]:
    found = facts["difference"]
    if not found["comparable"]:
        return [f"not compared: {found['caution']}"]
    a, b = done.labels()
    lines = [
        f"{b} - {a}: {with_error(found['nll'], found['nll_se'], sign='+')} nats per token over the same "
        f"{facts['sequences']} sequences; {b} is lower on {found['share_of_sequences_lower']:.0%} of them"
    ]
    if not found["common_noise_levels"] and not all(run.objective.exact for run in done.runs):
        lines.append("  paired by sequence only: their noise levels are not the same")
    return lines + ([f"  caution     {found['caution']}"] if found["caution"] else [])


def with_error(value: float, error: float | None, sign: str = "") -> str:
    """A number with its standard error, where it has one."""
    return f"{value:{sign}.4f} ± {error:.4f}" if error is not None else f"{value:{sign}.4f} (one sequence, no ±)"
