"""Fixtures: a study file, the stand-in experiment, workers as processes that end with the test."""

import importlib.util
import shutil
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


@pytest.fixture(params=["journal", "postgresql"])
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
        from sweeps import study
        from sweeps.folder import StudyFolder

        return StudyFolder(study.load(path), tmp_path / "runs")

    return find


@pytest.fixture
def records_of(folder_of):
    """The trials of a study file, joined with their folders."""

    def read(path):
        from sweeps import history, storage

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
