"""Fixtures: a study file, the stand-in experiment, workers as processes that end with the test."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent


def _module(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def signals():
    """As before after each test: the command line, called in this process, keeps signals and catches them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture(scope="session")
def experiments():
    """The stand-in for diffusion_lm.experiment."""
    return _module("fake_experiment")


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server; its `url()` is a new database. Where it is not installed its tests skip: in CI a failure."""
    module = _module("postgresql")
    if module.binaries() is None:
        pytest.skip("no initdb: apt-get install postgresql")
    with module.PostgreSQL() as server:
        yield server


@pytest.fixture(params=["journal", pytest.param("postgresql", marks=pytest.mark.slow)])
def each_storage(request, monkeypatch):
    """Runs the test with studies in a journal, then with studies in PostgreSQL. Returns the word or the URL."""
    address = "journal"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgresql").url()
    monkeypatch.setenv("SWEEPS_STORAGE", address)
    return address


@pytest.fixture
def write_study(tmp_path):
    """Writes a study file; returns its path. Keys are given as keyword arguments."""

    def write(name="s", **keys):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"experiment": "fake", **keys}, sort_keys=False))
        return path

    return write


@pytest.fixture
def start(tmp_path):
    """Starts worker processes on a study; whatever still runs when the test ends is killed."""
    started = []

    def run(path, count=1, *more):
        command = [sys.executable, str(HERE / "fake_worker.py"), str(path), str(tmp_path / "runs"), *more]
        fresh = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                 for _ in range(count)]
        started.extend(fresh)
        return fresh

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def work(start):
    """Runs workers on a study to their end; returns their exit codes and what they printed."""

    def run(path, count=1, *more):
        processes = start(path, count, *more)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        return [process.returncode for process in processes], "\n".join(outputs)

    return run


@pytest.fixture
def folder_of(tmp_path):
    """The StudyFolder of a study file."""

    def find(path):
        from sweeps.definition import study
        from sweeps.records.folder import StudyFolder

        return StudyFolder(study.load(path), tmp_path / "runs")

    return find


@pytest.fixture
def records_of(folder_of):
    """The trials of a study file, joined with their folders."""

    def read(path):
        from sweeps.records import history, storage

        folder = folder_of(path)
        return history.records(folder, storage.load(folder))

    return read


@pytest.fixture
def eventually():
    """Waits until a condition holds."""

    def wait(condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Opens pages in headless Chromium: `open(url)` gives the driver, `errors()` what scripts complained of since."""
    from types import SimpleNamespace

    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1500,1300", "--no-first-run", "--disable-background-networking",
                     f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    driver.set_page_load_timeout(60)

    def opened(url):
        driver.get_log("browser")
        driver.get(url)
        return driver

    def errors():
        return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]

    yield SimpleNamespace(driver=driver, open=opened, errors=errors)
    driver.quit()


@pytest.fixture
def trained(folder_of, experiments):
    """Plans a study and ends its trials at once, as workers would leave them: `numbers(params, seed)` gives the final
    metrics (and ``speed``, ``result``: more of result.json, ``fail``: a reason). Returns the study's folder."""

    def run(path, numbers):
        import json

        from sweeps.definition import design, planner

        folder = folder_of(path)
        study = planner.plan(folder, experiments)
        rows = design.rows(folder.config)
        for _ in range(folder.config.size):
            trial = study.ask()
            row = rows[trial.user_attrs.get("row", trial.number)]
            for key, value in {**row.attributes(), "git": "abc", "machine": "2 x CPU, no GPU", "node": "n1"}.items():
                trial.set_user_attr(key, value)
            params = design.suggest(folder.config, trial)
            place = folder.path / design.folder_name(folder.config, trial.number, row.cell, row.seed)
            place.mkdir()
            trial.set_user_attr("folder", str(place))
            (place / "config.yaml").write_text("training: {devices: 2}\n")
            found = {**numbers(params, row.seed)}
            if "fail" in found:
                trial.set_user_attr("reason", found["fail"])
                study.tell(trial, state=optuna_state("FAIL"))
                continue
            more, speed = found.pop("result", {}), found.pop("speed", 1000.0)
            found = {"val/nll_se": 0.02, "val/bpb": found["val/nll"] / 0.7, **found}
            lines = [{"step": step, "tokens": 1000 * step, **found, "val/nll": found["val/nll"] + 2 / step**2,
                      "throughput/tokens_per_second": speed} for step in range(1, 11)]
            (place / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            result = {"status": "finished", "step": 10, "tokens": 10_000, "metrics": found, "seconds": 1800.0,
                      "process": "masked", "parameters": {"non_embedding": 20_000}, "sample": "once upon a time",
                      "corpus": {"hash": "c0ffee", "name": "fake", "unigram_entropy": 3.1, "log_vocabulary": 5.5}}
            (place / "result.json").write_text(json.dumps({**result, **more}))
            study.tell(trial, [speed if name == "throughput/tokens_per_second" else found[name]
                               for name in folder.config.metrics])
        return folder

    def optuna_state(name):
        from optuna.trial import TrialState

        return TrialState[name]

    return run
