"""Moving averages against a loop that keeps every step's weights, through Lightning's own training loop."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from diffusion_lm.errors import UserError
from diffusion_lm.schedules.learned import Learned, LearnedConfig
from diffusion_lm.training.averaging import Average, averaged
from diffusion_lm.training.config import TrainingConfig

FIRST, OTHERS, STEPS, ACCUMULATE = 0.3, (0.95, 0.2), 12, 2

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Net(lightning.LightningModule):
    """A tied weight, a count, a buffer and a learned schedule."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.schedule = Learned(LearnedConfig(units=2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(3))

    def training_step(self, batch, index):
        self.count += 1
        self.mean += batch[0].mean(0)
        level = self.schedule.log_snr(torch.tensor([0.3], dtype=torch.float64))
        return self.two(self.one(batch[0])).square().mean() + level.sum().float() * 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


class Diary(Callback):
    """Copies of all weights after every optimiser step."""

    def __init__(self, average) -> None:
        self.pages, self.average, self.devices = {}, average, set()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        held = [*self.average._average_model.parameters(), *self.average._averages[OTHERS[0]].values()]
        self.devices |= {(module.device, tensor.device) for tensor in held}
        if trainer.global_step not in self.pages:
            self.pages[trainer.global_step] = {name: v.clone() for name, v in module.state_dict().items()}


def fit(folder, accelerator="cpu"):
    rows = torch.randn(4 * STEPS * ACCUMULATE, 3, generator=torch.Generator().manual_seed(3))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=4)
    average, net = Average(FIRST, OTHERS), Net()
    diary = Diary(average)
    trainer = lightning.Trainer(accelerator=accelerator, devices=1, max_steps=STEPS, callbacks=[diary, average],
                                accumulate_grad_batches=ACCUMULATE, default_root_dir=folder, **QUIET)  # fmt: skip
    trainer.fit(net, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return diary, torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore:.*(workers|srun).*")
def test_every_decay_with_its_warm_up(tmp_path):
    diary, checkpoint = fit(tmp_path)
    pages = diary.pages
    assert list(pages) == list(range(STEPS + 1)), "step 0 is the first half of a step"
    found = {FIRST: checkpoint["state_dict"], **{decay: checkpoint["averages"][str(decay)] for decay in OTHERS}}
    assert set(checkpoint["averages"]) == {"0.95", "0.2"}
    for decay, weights in found.items():
        for name, last in pages[STEPS].items():
            if name == "count" or name.startswith("schedule."):
                assert torch.equal(weights[name], last), name
                continue
            naive = pages[1][name].double()
            for step in range(2, STEPS + 1):
                n = step - 1
                keep = min(decay, (1 + n) / (10 + n))
                naive = keep * naive + (1 - keep) * pages[step][name].double()
            torch.testing.assert_close(weights[name].double(), naive, atol=1e-6, rtol=1e-6, msg=f"{decay} {name}")
            assert not torch.equal(weights[name], last), name
        assert torch.equal(weights["one.weight"], weights["two.weight"])
    assert not torch.equal(found[FIRST]["one.weight"], found[0.95]["one.weight"])


@pytest.mark.gpu
def test_they_are_where_the_weights_are(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    diary, _ = fit(tmp_path, "gpu")
    assert diary.devices == {(torch.device("cuda", 0), torch.device("cuda", 0))}


def test_what_a_checkpoint_keeps_is_chosen_by_decay():
    config = TrainingConfig(ema_decay=0.9, ema_decays=(0.99, 0.999))
    one, two, three, four = ({"weight": torch.tensor(float(number))} for number in range(1, 5))
    checkpoint = {"state_dict": one, "current_model_state": two, "averages": {"0.99": three, "0.999": four}}
    assert [averaged(checkpoint, config, decay) for decay in (0.9, 0.0, 0.99, 0.999)] == [one, two, three, four]
    assert averaged({"state_dict": one}, TrainingConfig(ema_decay=0.0), 0.0) == one
    with pytest.raises(UserError) as refused:
        averaged(checkpoint, config, 0.5)
    assert str(refused.value) == (
        "ema: got 0.5, expected 0.9, 0.99, 0.999, or 0 for the live weights: the run kept no other"
    )
    with pytest.raises(UserError) as refused:
        averaged({"state_dict": one}, TrainingConfig(ema_decay=0.0), 0.9)
    assert str(refused.value) == "ema: got 0.9, expected 0, the live weights: the run kept no other"
