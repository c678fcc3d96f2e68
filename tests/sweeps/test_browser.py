"""TensorBoard and the Optuna dashboard in a real browser, started by the commands that the report gives, on a study
that workers ran: stand-ins train, and the project's own logger writes what they reported.
"""

import json
import math
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.slow

WAIT = 60  # seconds: two cores, and what CI runs beside
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms, two learning rates and two seeds; and an arm that fails. The report is written."""
    place = tmp_path_factory.mktemp("browser")
    definition = place / "compare.yaml"
    definition.write_text("""
experiment: fake
arms: {transformer: {}, mamba: {denoiser: mamba}, broken: {fault: bad}}
space: {lr: {choices: [0.001, 0.003]}}
seeds: [0, 1]
baseline: transformer
overrides: {steps: 4}
""")
    command = [sys.executable, str(HERE / "fake_worker.py"), str(definition), str(place / "runs"), "report"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert {worker.returncode for worker in workers} <= {0, 1}, said  # 1: a trial of this worker failed
    folder = place / "runs" / "compare"
    for trial in folder.glob("[0-9]*"):
        log_as_training_does(trial)
    return folder


def log_as_training_does(trial):
    from diffusion_lm.experiment import load
    from diffusion_lm.training.events import Events
    from diffusion_lm.training.hparams import columns, flat_hparams

    if not (trial / "report.jsonl").exists():
        return
    events = Events(trial, resumed_at=0)
    events.log_hyperparams(flat_hparams(load("quickstart"), trial), columns(("val/nll", "val/bpb")))
    for text in (trial / "report.jsonl").read_text().splitlines():
        line = json.loads(text)
        step, _ = line.pop("step"), line.pop("tokens")
        levels = {f"val_cross_entropy_by_noise_level/{band / 20:.2f}": band / 20 for band in (1, 9, 19)}
        events.log_metrics({**line, **levels, "train/loss": line["val/nll"]}, step)
        events.experiment.add_text("samples", "    once upon a time", step)
    events.save()


@pytest.fixture
def serve(study):
    """Starts the tool by its line of the report, on a free port; gives its address. It ends with the test."""
    started = []

    def run(tool):
        lines = (study / "report.md").read_text().splitlines()
        (line,) = [line for line in lines if f"{tool} " in line and "--host 127.0.0.1" in line]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = shlex.split(line)
        assert Path(words[0]).name == tool
        started.append(subprocess.Popen([*words, "--port", str(port)], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{port}"
        answered(address)
        return address

    yield run
    for process in started:
        process.terminate()
        process.wait(timeout=20)


def answered(address):
    end = time.monotonic() + WAIT
    while True:
        try:
            return urlopen(address, timeout=5).read()
        except OSError:
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.2)


@pytest.fixture
def shown(browser):
    """Waits until the page, its shadow roots included, shows all of some texts; returns its whole text."""
    script = """
    const texts = [];
    const walk = node => {
      if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
      if (node.shadowRoot) walk(node.shadowRoot);
      if (!['SCRIPT', 'STYLE'].includes(node.nodeName)) node.childNodes.forEach(walk);
    };
    walk(document.body);
    return texts.join(' ').replace(/\\s+/g, ' ');
    """

    def wait(*parts):
        end = time.monotonic() + WAIT
        while missing := [part for part in parts if part not in (text := browser.driver.execute_script(script))]:
            assert time.monotonic() < end, f"not on the page: {missing}; it says: {text[:3000]}"
            time.sleep(0.3)
        return text

    return wait


def nll(arm, lr, seed, step=4):
    """What the stand-in for training reports."""
    return 2 + {"transformer": 0, "mamba": -0.1}[arm] + 0.05 * seed + 3 * math.exp(-step) + 100 * (lr - 0.001)


def test_the_dashboard_of_optuna(study, serve, browser, shown):
    address = serve("optuna-dashboard") + "/dashboard/studies/0"
    browser.open(address)
    shown("val/nll: mean over seeds, 95 % interval", "val/nll minus transformer, paired, 95 % interval",
          "main effect of arm:", "main effect of lr:", "mamba,lr=0.003", "Study Artifacts", "bounds.png", "report.html")
    browser.open(f"{address}/note")
    shown("mamba,lr=0.001", f"{nll('mamba', 0.001, 0.5):.3f}", f"{nll('transformer', 0.003, 0.5):.3f}", "-0.100",
          "error: shards: no such folder")
    browser.open(f"{address}/trials?numbers=2")
    trial = study / "0002-mamba,lr=0.001-seed0"
    shown("mamba,lr=0.001", f"Folder: {trial}", f"python -m diffusion_lm train {trial}/config.yaml run=NEW",
          "config.yaml", str(nll("mamba", 0.001, 0))[:8])
    browser.open(f"{address}/trials?numbers=4")
    shown("broken,lr=0.001", "No result : exit status 2", "The end of its log:", "error: shards: no such folder",
          "train.log")
    assert browser.errors() == []


def test_tensorboard(study, serve, browser, shown):
    address = serve("tensorboard")
    pages = {
        "timeseries": ["mean/mamba,lr=0.001", "mean/transformer,lr=0.003", "0000-transformer,lr=0.001-seed0",
                       "0009-mamba,lr=0.003-seed1", "val/nll"],
        "custom_scalars": ["bound (nats per token)", "loss by noise level (nats per predicted token)",
                           "noise level 0.95", "mean over seeds", "mean and 95 % interval over seeds"],
        "hparams": ["arm", "lr", "seed", "val/nll", "val/bpb", "throughput/tokens_per_second",
                    f"{nll('transformer', 0.001, 0):.5g}", f"{nll('mamba', 0.003, 1):.5g}"],
        "text": ["samples", "once upon a time"],
    }
    for page, texts in pages.items():
        browser.open("about:blank")
        browser.open(f"{address}/#{page}")
        text = shown(*texts)
        assert "hp_metric" not in text and "No scalar data" not in text
        assert browser.errors() == [], page
