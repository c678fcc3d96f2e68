"""Stands in for `python -m diffusion_lm train`: its files, exit codes and signals, and no training.

It counts to `steps`, one report per step, remembers the step in a checkpoint, and every life of it in lives.txt.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

(source,) = sys.argv[1:]
folder = Path(source).parent
config = yaml.safe_load(Path(source).read_text())
checkpoint = folder / "checkpoint"
FAILS = {"memory": "out_of_memory", "diverged": "not_finite", "disk": "disk", "broken": "code"}
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(number))


def metrics(step):
    offset = {"transformer": 0.0, "mamba": -0.1, "hybrid": -0.2, "dimba": 0.3}[config["denoiser"]]
    nll = 2.0 + offset + 0.05 * config["seed"] + 3 * math.exp(-step) + 100 * abs(config["lr"] - 0.001)
    if config["fault"] == "nan":
        nll = math.nan
    if config["fault"] == "absurd":
        return {"val/nll": 8.8e31, "throughput/tokens_per_second": 1000.0}
    if config["fault"] == "no bound":
        return {"val/mse": 0.5, "throughput/tokens_per_second": 1000.0}
    return {"val/nll": nll, "val/nll_se": 0.02, "val/bpb": nll / math.log(2), "val/ppl_bound": math.exp(nll),
            "throughput/tokens_per_second": 1000.0 + 500 * config["width"] / 64}


def end(status, step, code):
    corpus = {"hash": config["corpus"], "name": "fake", "unigram_entropy": 3.1, "log_vocabulary": math.log(256)}
    result = {"status": status, "step": step, "tokens": 1000 * step, "metrics": metrics(step), "seconds": 1.5,
              "parameters": {"total": 30000, "embedding": 10000, "non_embedding": 20000}, "corpus": corpus,
              "sample": "once upon a time", "git": "abc"}
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result))
    temporary.rename(folder / "result.json")
    sys.exit(code)


step = int(checkpoint.read_text()) if checkpoint.exists() else 0
with open(folder / "lives.txt", "a") as lives:
    lives.write(f"{os.getpid()} from {step}\n")
if config["fault"] == "bad":
    print("error: shards: no such folder")
    sys.exit(2)
while step < config["steps"]:
    step += 1
    time.sleep(config["pause"])
    with open(folder / "report.jsonl", "a") as report:
        report.write(json.dumps({"step": step, "tokens": 1000 * step, **metrics(step)}) + "\n")
    checkpoint.write_text(str(step))
    life = (folder / "lives.txt").read_text().count("\n")
    if config["fault"].removesuffix(" once") in FAILS and (life == 1 or not config["fault"].endswith(" once")):
        kind = FAILS[config["fault"].removesuffix(" once")]
        (folder / "failure.json").write_text(json.dumps({"class": kind, "message": f"it was {kind}"}))
        sys.exit(1)
    if config["fault"] == "killed" or (config["fault"] == "killed once" and life == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if config["fault"] == "crash" or (config["fault"] == "crash once" and life == 1):
        print("CUDA error: out of memory")
        sys.exit(1)
    if config["fault"] == "interrupted once" and life == 1:
        sys.exit(75)
    if (folder / "STOP").exists():
        end("pruned", step, 3)
    if asked:
        sys.exit(130 if asked[0] == signal.SIGINT else 75)
end("finished", step, 0)
