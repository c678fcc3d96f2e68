"""With this folder on PYTHONPATH each optimiser step of `python -m diffusion_lm train` takes STEP_PAUSE seconds longer.

So there is time to disturb a training that a processor does in a moment, and what it computes is what it was.
"""

import os
import sys
import time

if {"diffusion_lm", "train"} <= set(sys.orig_argv):
    from torch.optim.optimizer import register_optimizer_step_post_hook

    pause = float(os.environ["STEP_PAUSE"])
    register_optimizer_step_post_hook(lambda *_: time.sleep(pause))
