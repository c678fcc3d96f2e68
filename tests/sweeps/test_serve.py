"""Dashboards as processes: told when they answer, ended together. Stand-ins serve one page each."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SERVER = """
import http.server, sys
print("chatter"); print("more chatter", file=sys.stderr, flush=True)
sys.argv.pop(1) == "dead" and sys.exit("error: no")
host, port = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"page")
http.server.HTTPServer((host, port), Page).serve_forever()
"""
DRIVER = """
import os, pathlib, sys
from diffusion_lm.errors import run_command
from sweeps.cluster import serve
pages = [serve.Page(f"Page {kind}", (sys.executable, "-c", sys.argv[1], kind)) for kind in sys.argv[2:]]
sys.exit(run_command(lambda argv: serve.run(pages, pathlib.Path(os.environ["SERVED"])), []))
"""


def start(*kinds, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.Popen([sys.executable, "-c", DRIVER, SERVER, *kinds], stdout=subprocess.PIPE, cwd=PROJECT,
                            stderr=subprocess.PIPE, text=True, env={**kept, **environment})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_pages_are_told_when_they_answer_and_end_with_the_job(number, code, tmp_path):
    job = {"SERVED": str(tmp_path), "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n5", "SLURM_SUBMIT_HOST": "login1"}
    with start("a", "b", **job) as process:
        told = [process.stdout.readline() for _ in range(4)]
        ports = re.findall(r"http://127\.0\.0\.1:(\d+)", "".join(told[:2]))
        assert told[0].startswith("Page a ") and told[1].startswith("Page b ") and len(set(ports)) == 2
        for port in ports:
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read() == b"page"
        tunnels = " ".join(f"-L {port}:127.0.0.1:{port}" for port in ports)
        assert re.search(rf"ssh -N -J (\S+)@login1 {re.escape(tunnels)} \1@n5\n", told[2]), told
        process.send_signal(number)
        more, error = process.communicate(timeout=20)
        assert process.returncode == code and more == error == "", "what the servers say is elsewhere"
    assert not list(tmp_path.iterdir())
    for port in ports:
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


def test_one_that_ends_takes_the_other_with_it(tmp_path):
    with start("a", "dead", SERVED=str(tmp_path)) as process:
        out, error = process.communicate(timeout=30)
    assert process.returncode == 1 and out == ""
    (log,) = tmp_path.glob("dashboard-*.log")
    assert error == f"error: Page dead ended with status 1; what it said is in {log}\n"
    assert "error: no\n" in log.read_text()


def test_studies_that_are_not_there_are_one_line(tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text("experiment: x\n")
    for words, said in (([study], "study 's' was not started"), ([], "--root: ")):
        command = [sys.executable, "-m", "sweeps", "dashboard", *words, "--root", tmp_path / "runs"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "runs").exists()
