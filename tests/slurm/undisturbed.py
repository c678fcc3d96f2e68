"""Trains experiments one after the other in this process, without SLURM, workers or a disturbance.

    python undisturbed.py RUNS.json       {"FOLDER": ["EXPERIMENT", "key=value", ...], ...}
"""

import json
import sys
from pathlib import Path

from diffusion_lm.experiment import load
from diffusion_lm.training.run import Run
from diffusion_lm.training.train import train

for folder, (experiment, *overrides) in json.loads(Path(sys.argv[1]).read_text()).items():
    status = train(load(experiment, overrides), Run(Path(folder)))
    assert status == 0, f"{folder}: status {status}"
