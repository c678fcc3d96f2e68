"""On the default corpus the learned schedule lowers the variance of the Gaussian loss against cosine's."""

import statistics

import pytest

from data_prep.build import Settings, shard

STEPS = 150
SMALL = (
    "data.length=64", "data.val_sequences=8", "model.d_model=32", "denoiser.n_layers=1",
    "denoiser.mixer.inner.head_dim=16", f"training.steps={STEPS}", "training.val_every=0", "training.samples=0",
    "training.log_every=1", "training.checkpoint_every=1000", "training.accelerator=cpu", "evaluation.draws=1",
)  # fmt: skip


@pytest.mark.slow
def test_a_learned_schedule_lowers_the_variance_on_the_default_corpus(place):
    """experiments/gaussian_learned.yaml with a small denoiser: both runs see the same text, times and noise.

    Row by row `train/nll_variance` is over a step's 16 rows; the last fifth of the steps is compared, where the pace is
    learned. Half of cosine's times are spent where tokens are recoverable from their own vectors.
    """
    (place.folder / "shards").unlink()  # the tests' own text
    shard(Settings(out=place.folder / "shards" / "python_docs", length=64))
    variance, recoverable = {}, {}
    for schedule in ("learned", "cosine"):
        done = place.command("train", "gaussian_learned", f"schedule={schedule}", f"run={schedule}", *SMALL)
        assert done.code == 0, done
        curves = place.curves(schedule)
        for name, found in (("nll_variance", variance), ("recoverable_share", recoverable)):
            points = curves[f"train/{name}"]
            assert len(points) == STEPS
            found[schedule] = statistics.fmean(points[step] for step in sorted(points)[-STEPS // 5 :])
    assert variance["learned"] < 0.75 * variance["cosine"], variance
    assert recoverable["cosine"] > 0.4 > recoverable["learned"], recoverable
