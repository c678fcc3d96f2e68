"""With this folder on PYTHONPATH `python -m diffusion_lm train FOLDER/config.yaml` stops in the midst and waits.

When it has a checkpoint and has made two steps it writes its process id to FOLDER/held and waits for a file `go` in
FOLDER or above it. So a test chooses what happens to a training before it ends; what is computed is the same.
"""

import itertools
import os
import sys
import time
from pathlib import Path

if {"diffusion_lm", "train"} <= set(sys.orig_argv):
    from torch.optim.optimizer import register_optimizer_step_post_hook

    folder, steps = Path(sys.orig_argv[-1]).parent, itertools.count(1)

    def hold(*_):
        if next(steps) < 2 or not (folder / "checkpoints" / "last.ckpt").exists():
            return
        while not any((place / "go").exists() for place in (folder, folder.parent)):
            (folder / "held").write_text(str(os.getpid()))
            time.sleep(0.05)

    register_optimizer_step_post_hook(hold)
