"""Many workers without training: COUNT processes at once claim and tell the trials of STUDY.yaml in ROOT, all of them.

Each prints the numbers that it claimed. Forked after the imports, so that they really start together.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from sweeps.definition import design, study  # noqa: E402
from sweeps.records import storage  # noqa: E402
from sweeps.records.claim import Claims  # noqa: E402
from sweeps.records.folder import StudyFolder  # noqa: E402
from sweeps.records.owner import Owner  # noqa: E402


def with_claims(folder):
    known = storage.load(folder)
    claims = Claims(folder, known, Owner.current())
    while claim := claims.fresh():
        design.suggest(folder.config, claim.trial)
        claim.trial.report(0.5, 1)
        claim.trial.set_user_attr("pid", os.getpid())
        known.tell(claim.trial, float(claim.number))
        yield claim.number


def with_ask(folder):
    """Optuna's own way to a waiting trial, without a lock of ours."""
    known = storage.load(folder)
    while (trial := known.ask()).user_attrs:  # one that nobody planned has none
        known.tell(trial, float(trial.number))
        yield trial.number


def main(path, root, count, how):
    folder = StudyFolder(study.load(path), root)
    gate, opened = os.pipe()
    children = []
    for _ in range(int(count)):
        pid = os.fork()
        if pid == 0:
            os.close(opened)
            os.read(gate, 1)
            os.write(1, (" ".join(map(str, globals()[how](folder))) + "\n").encode())
            os._exit(0)
        children.append(pid)
    os.close(opened)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
