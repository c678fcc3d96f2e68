"""The model card of a folder of weights: what is known, and that the rest is not."""

from collections.abc import Mapping
from typing import Any

from diffusion_lm.config import name_of
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.kind import cache_caution

LICENCE = (
    "None is stated. Whoever publishes these weights has to choose one, and to see what the text that they were "
    "trained on, and the weights that they may have been made from, allow."
)


def card(config: ExperimentConfig, facts: Mapping[str, Any]) -> str:
    """README.md."""
    count, source = facts["parameters"], facts["source"]
    rows = {
        "made from": f"{source['format']}: `{source['path']}` ({facts['weights']} weights)",
        "denoiser": f"{name_of(config.denoiser)}, {config.denoiser.n_layers} blocks, d_model {config.model.d_model}",
        "process": f"{name_of(config.process)}, trained with objective {name_of(config.objective)}",
        **_blocks(config),
        "parameters": f"{count['total']:,} ({count['non_embedding']:,} without token table and head)",
        "tokenizer": _tokenizer(facts),
        "data": _data(facts),
        "tokens seen": _number(facts["tokens"]) + (f" in {facts['step']:,} steps" if facts["step"] else ""),
        "likelihood": _bound(facts),
        "trained by": f"commit {facts['trained_by']}" if facts.get("trained_by") else "not known here",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    notes = "".join(f"* {note}\n" for note in facts["notes"])
    return (
        f"# {facts['name']}\n\nA diffusion language model.\n\n| | |\n|---|---|\n{table}\n\n"
        + (f"{notes}\n" if notes else "")
        + f"Made at commit {facts['git'] or '(none)'} by\n\n    {facts['command']}\n\n"
        "`experiment.yaml` is the whole experiment, `config.json` holds the facts above. The folder is used like a run:"
        "\n\n    python -m diffusion_lm evaluate FOLDER\n    python -m diffusion_lm generate FOLDER\n\nor in Python\n\n"
        "    from diffusion_lm.weights.folder import load_pretrained\n    model = load_pretrained(FOLDER)\n\n"
        f"## Licence\n\n{LICENCE}\n"
    )


def _blocks(config: ExperimentConfig) -> dict[str, str]:
    """The row of a model that writes in blocks."""
    if not config.block_size:
        return {}
    cache = config.denoiser.cache()
    return {"blocks": f"{config.block_size} tokens each, left to right; {cache_caution(cache) or 'the cache is exact'}"}


def _tokenizer(facts: Mapping[str, Any]) -> str:
    found = facts["tokenizer"]
    fingerprint = f", fingerprint {found['fingerprint']}" if "fingerprint" in found else ", not in this project"
    return f"{found['name']}, {found['vocabulary']:,} ids{fingerprint}"


def _data(facts: Mapping[str, Any]) -> str:
    dataset = facts["dataset"]
    if dataset is None:
        return "not known here"
    return f"{dataset['name']}, corpus {dataset['corpus_hash'][:12]}, sequences of {dataset['length']} tokens"


def _number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def _bound(facts: Mapping[str, Any]) -> str:
    bound = facts["bound"]
    if bound is None:
        return "not evaluated here"
    error = f" ± {bound['val/nll_se']:.4f}" if bound.get("val/nll_se") is not None else ""
    kind, most = ("exact", "") if bound["exact"] else ("an upper bound", "at most ")
    return (
        f"{bound['val/nll']:.4f}{error} nats per token of the validation split, {kind} "
        f"(perplexity {most}{bound['val/ppl_bound']:.2f}, {bound['val/bpb']:.4f} bits per byte)"
    )
