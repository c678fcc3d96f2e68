"""Every objective block by block: what goes in, what comes out, and that splitting, folding and noise keep their rules.

Objectives and their processes are discovered from the folder. Configs refuse those without a meaning in blocks.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.blocks import Blocks, block_positions, fold
from diffusion_lm.blockwise import Blockwise, objective_of
from diffusion_lm.cache import Cache, Denoising
from diffusion_lm.config import build, config_class, from_tree, part_class, variants
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, kind
from diffusion_lm.model import DenoisingModel, ModelConfig, model_flops_per_token, training_flops_per_token
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise

VOCABULARY, LENGTH = 5, 6


def class_of(objective: str) -> type:
    return part_class(config_class("objectives", objective)())


BLOCKWISE = [name for name in variants("objectives") if class_of(name).blockwise]
WHOLE_TEXTS = [name for name in variants("objectives") if not class_of(name).blockwise]
PAIRS = [(name, process) for name in BLOCKWISE for process in class_of(name).processes]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request, tools):
    """(objective's name, process over the objective's default schedule)."""
    name, process = request.param
    return name, tools.process_of(process, class_of(name).default_schedule, VOCABULARY)


def batch_of(rows: int, start: int = 0, seed: int = 0) -> Batch:
    tokens = torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens, torch.arange(start, start + rows))


def blocks_of(name: str, process, size: int, *, prompt: float = 0.0, times: str = "stratified", rows: int = 8):
    """The objective, over blocks of that size (0: over whole texts), for a global batch of so many texts."""
    noise = TrainingNoise(0, rows, build(config_class("times", times)()))
    return objective_of(config_class("objectives", name)(), process, PromptConfig(fraction=prompt), noise, size, LENGTH)


def model_of(name: str, process, tools, **changes) -> DenoisingModel:
    """A small model that shows itself its own estimates, where its states are vectors."""
    torch.manual_seed(0)
    own = {} if process.discrete else {"self_conditioning": 0.5}
    config = ModelConfig(**({"d_model": 16, "embedding_dim": 4} | own | changes))
    mixer = config_class("mixers", "attention")(head_dim=8)
    trunk = config_class("denoisers", "transformer")(n_layers=2, mixer=mixer)
    return tools.shaken(DenoisingModel(config, trunk, process, class_of(name).readout))


def gradients(loss, model) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))


def assert_same_gradients(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for value, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-8)


def test_the_folder_is_seen():
    assert {"masked", "uniform", "gidd", "gaussian", "discrete_time", "score_entropy"} <= set(BLOCKWISE)
    assert set(WHOLE_TEXTS) == {"autoregressive", "dimba_literal"}


@pytest.mark.parametrize("name", WHOLE_TEXTS)
def test_what_has_no_blocks_is_refused_when_the_config_is_read(name):
    tree = {"objective": name, "data": {"length": 8}, "block_size": 4, "sampler": {"name": "ancestral"}}
    if class_of(name).causal:
        tree |= {"sampler": "left_to_right", "denoiser": {"name": "mamba", "mixer": "mamba2"}}
    from_tree(ExperimentConfig, tree | {"block_size": 0})
    with pytest.raises(UserError, match=f"^block_size: got 4, but objective '{name}' has no blocks") as refused:
        from_tree(ExperimentConfig, tree)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [1, 3])
def test_a_loss_is_of_blocks_and_can_be_drawn_before(pair, tools, size):
    name, process = pair
    model, batch, objective = model_of(name, process, tools), batch_of(8), blocks_of(name, process, size, prompt=0.5)
    drawn = objective.draw(batch)
    assert torch.equal(drawn.tokens, fold(batch.tokens, size))
    assert torch.equal(drawn.blocks.tokens, drawn.tokens) and drawn.blocks.count == LENGTH // size
    first, again = objective(model, drawn.to("cpu")), objective(model, batch)
    assert torch.equal(first.loss, again.loss) and torch.equal(first.nll, again.nll)
    assert first.nll.shape == first.tokens.shape == (8 * LENGTH // size,)
    assert first.loss.isfinite() and first.nll.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(first.loss, model))


@pytest.mark.parametrize(("rows", "size", "prompt"), [(1, 2, 0.5), (4, 1, 0.0)])
def test_training_does_not_depend_on_how_the_global_batch_is_split(pair, tools, rows, size, prompt):
    name, process = pair
    model, batch = model_of(name, process, tools), batch_of(8, start=16)
    objective = blocks_of(name, process, size, prompt=prompt)
    whole = objective(model, objective.draw(batch))
    parts = [Batch(*part) for part in zip(batch.tokens.split(rows), batch.position.split(rows))]
    losses = [objective(model, objective.draw(part)) for part in parts]
    torch.testing.assert_close(torch.cat([loss.nll for loss in losses]), whole.nll, rtol=1e-4, atol=1e-5)
    mean = torch.stack([loss.loss for loss in losses]).mean()
    torch.testing.assert_close(mean, whole.loss)
    assert_same_gradients(gradients(mean, model), gradients(whole.loss, model))


def test_a_block_as_long_as_the_text_is_the_text(pair, tools):
    """Loss, gradients and bound are those without blocks: there are no clean blocks to see."""
    name, process = pair
    model, batch, noise = model_of(name, process, tools), batch_of(8), Noise(3, torch.arange(8))
    folded, plain = (blocks_of(name, process, size, prompt=0.5) for size in (LENGTH, 0))
    losses = [objective(model, objective.draw(batch)) for objective in (folded, plain)]
    torch.testing.assert_close(losses[0].loss, losses[1].loss)
    assert_same_gradients(*(gradients(loss.loss, model) for loss in losses))
    with torch.no_grad():
        found, wanted = (objective.bound(model, batch, noise, 2) for objective in (folded, plain))
    torch.testing.assert_close(found.nll, wanted.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cross_entropy, wanted.cross_entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.level, wanted.level) and torch.equal(found.tokens, wanted.tokens)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_a_bound_is_the_sum_over_the_blocks_of_a_text(pair, tools, size):
    name, process = pair
    model, batch, count = model_of(name, process, tools), batch_of(4), LENGTH // size
    objective = blocks_of(name, process, size)
    bound = objective.bound(model, batch, Noise(7, batch.position), 3)
    assert bound.nll.shape == (4,) and bound.tokens.tolist() == [LENGTH] * 4
    assert bound.level.shape == bound.cross_entropy.shape == (4, 3 * count)
    torch.testing.assert_close(sum(bound.terms.values()), bound.nll)
    rows = Batch(fold(batch.tokens, size), block_positions(batch.position, count))
    rows = Batch(rows.tokens, rows.position, blocks=Blocks(rows.tokens, count))
    each = objective.inner.bound(model, rows, Noise(7, rows.position), 3)
    torch.testing.assert_close(bound.nll, torch.stack([part.sum() for part in each.nll.split(count)]))
    alone = Batch(batch.tokens[2:3], batch.position[2:3])
    one = objective.bound(model, alone, Noise(7, alone.position), 3)
    torch.testing.assert_close(one.nll, bound.nll[2:3], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_later_blocks_change_nothing_in_the_losses_of_earlier_ones(pair, tools, size):
    name, process = pair
    model, batch, objective = model_of(name, process, tools), batch_of(8), blocks_of(name, process, size)
    last, other = LENGTH // size - 1, batch.tokens.clone()
    other[:, last * size :] = (other[:, last * size :] + 1) % VOCABULARY
    found, moved = (objective(model, Batch(t, batch.position)).nll.view(8, -1) for t in (batch.tokens, other))
    torch.testing.assert_close(found[:, :last], moved[:, :last])
    assert not torch.isclose(found[:, last], moved[:, last]).all()


def test_given_positions_of_a_block_are_clean_marked_and_not_scored(pair, tools, monkeypatch):
    """The share of prompts is one of blocks; the clean text that the blocks stand beside is never marked."""
    name, process = pair
    model, batch, objective = model_of(name, process, tools), batch_of(16), blocks_of(name, process, 3, prompt=0.6)
    seen, trunks, usual = [], [], DenoisingModel._trunk
    monkeypatch.setattr(DenoisingModel, "_trunk", lambda self, noisy: (seen.append(noisy), usual(self, noisy))[1])
    model.denoiser.register_forward_pre_hook(lambda _, arguments: trunks.append(arguments[1]))
    loss = objective(model, batch)
    clean = process.encode(fold(batch.tokens, 3), model.table())
    for noisy, both in zip(seen, trunks, strict=True):
        assert noisy.given.shape == (32, 3) and 6 <= int(noisy.given.any(1).sum()) <= 30
        assert (noisy.given[:, 0] | ~noisy.given.any(1)).all()  # a prefix of the block
        assert torch.equal(noisy.x[noisy.given], clean[noisy.given])
        assert torch.equal(loss.tokens, (~noisy.given).sum(1).float())
        assert not both.given[:32].any() and torch.equal(both.given[32:], noisy.given)
        assert (both.noise_level[:32] == 0).all() and torch.equal(both.noise_level[32:], noisy.noise_level)


@pytest.mark.parametrize("times", variants("times"))
@pytest.mark.parametrize(("texts", "size"), [(2, 3), (8, 2), (8, 1)])
def test_every_step_covers_the_strata_of_batch_times_blocks_once(tools, times, texts, size):
    """Whatever the micro-batches and devices; each block has a time of its own."""
    process = tools.process_of("masked", "log_linear", VOCABULARY)
    objective, count = blocks_of("masked", process, size, times=times, rows=texts), LENGTH // size
    strata, weights = [], []
    for step in range(6):
        batch = batch_of(texts, start=step * texts)
        parts = [Batch(t, p) for t, p in zip(batch.tokens.split(1), batch.position.split(1))]
        drawn = [objective.draw(part) for part in (parts[::2] + parts[1::2])]  # two devices, one after the other
        t = torch.cat([each.t for each in drawn]).flatten()
        assert torch.equal(t.sort().values, objective.draw(batch).t.flatten().sort().values)
        weights.append(torch.cat([each.weight for each in drawn]).flatten()[t.argsort()])
        strata.append((t.sort().values - 1e-3) / 0.999)
    share = torch.stack(strata)
    if times == "importance":  # equal strata of ln t
        share = (1e-3 + 0.999 * share).log() / -torch.tensor(1e-3).double().log() + 1
    total = texts * count
    assert torch.equal((share * total).floor().long(), torch.arange(total).expand(6, -1))


def test_a_global_batch_counts_blocks():
    """An odd number of texts has an even number of blocks: times come in pairs all the same."""
    tree = {"times": "antithetic", "training": {"batch_size": 5}, "data": {"length": 8}}
    assert from_tree(ExperimentConfig, tree | {"block_size": 4}).block_size == 4
    with pytest.raises(UserError, match="times 'antithetic': got a global batch of 5, expected an even number"):
        from_tree(ExperimentConfig, tree | {"block_size": 8})


def test_a_learned_schedule_is_trained_in_blocks(tools):
    process = tools.process_of("gaussian", "learned", VOCABULARY)
    model, batch = model_of("gaussian", process, tools), batch_of(8)
    objective = blocks_of("gaussian", process, 2)
    objective(model, batch).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in process.schedule.parameters())
    assert all(bool(p.grad.any()) for p in (process.schedule.start, process.schedule.end, process.schedule.height))


def test_the_kind_of_a_bound_names_the_block_size(pair):
    name, process = pair
    folded, plain = blocks_of(name, process, 2).kind(), blocks_of(name, process, 0).kind()
    assert folded == plain and folded.depends_on == {**plain.depends_on, "block_size": 2}
    assert isinstance(blocks_of(name, process, 2), Blockwise)


@torch.no_grad()
def test_a_bound_of_single_tokens_is_called_exact_where_nothing_is_drawn(pair, tools):
    """Then it is the sum of what the model says of each token after those before it, read one by one from the cache."""
    name, process = pair
    objective, model, batch = blocks_of(name, process, 1), model_of(name, process, tools).eval(), batch_of(3)
    kind = objective.kind()
    assert kind.exact == objective.exact and kind.depends_on["block_size"] == 1
    bounds = [objective.bound(model, batch, Noise(seed, batch.position), 2) for seed in (0, 1)]
    if not objective.exact:
        assert bounds[0] is None or not torch.allclose(bounds[0].nll, bounds[1].nll)
        return
    cache, nll, one = Cache.empty(3), torch.zeros(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    for token in batch.tokens.split(1, 1):
        hidden = Noisy(torch.full_like(token, process.mask_id), one, cache=Denoising(cache=cache))
        nll -= model(hidden).logits.double().log_softmax(-1)[:, 0].gather(1, token).squeeze(1)
        cache = model.commit(token, cache)
    for bound in bounds:
        torch.testing.assert_close(bound.nll, nll, rtol=1e-5, atol=1e-5)


def test_masks_of_single_tokens_are_exact_and_no_others_are(tools):
    masked, uniform = (tools.process_of(name, "log_linear", VOCABULARY) for name in ("masked", "uniform"))
    for name in ("masked", "cross_entropy"):
        assert blocks_of(name, masked, 1).exact and not blocks_of(name, masked, 2).exact
    for name in ("uniform", "cross_entropy"):
        assert not blocks_of(name, uniform, 1).exact
    tree = {"data": {"length": 8}, "block_size": 1}
    assert str(kind(from_tree(ExperimentConfig, tree))) == "masked, exact"
    assert str(kind(from_tree(ExperimentConfig, tree | {"block_size": 2}))) == "masked, continuous time"


@pytest.mark.parametrize("size", [-1, 3, 5, 16])
def test_blocks_that_do_not_fill_the_text_are_refused(size):
    with pytest.raises(UserError, match=f"block_size: got {size}, expected a divisor of data.length 8, or 0 for the"):
        from_tree(ExperimentConfig, {"data": {"length": 8}, "block_size": size})


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"denoiser": {"name": "mamba", "conditioning": "token"}},
            "but conditioning 'token' puts the noise level into",
        ),
        ({"denoiser": "dimba", "objective": "gaussian"}, "but denoiser 'dimba' tells every block of the whole prompt"),
        (
            {"data": {"length": 8, "isolate_documents": True}},
            "but data.isolate_documents and blocks do not go together",
        ),
        (
            {"denoiser": {"mixer": {"causal": True, "block_size": 2}}},
            "but mixer 'attention' has a block_size of its own",
        ),
    ],
)
def test_pairings_without_a_meaning_are_refused(tree, line):
    with pytest.raises(UserError, match=f"^block_size: got 4, {line}") as refused:
        from_tree(ExperimentConfig, {"data": {"length": 8}, "block_size": 4} | tree)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("denoiser", "process"),
    [("transformer", "masked"), ("mamba", "masked"), ("hybrid", "masked"), ("transformer", "gaussian")],
)
@pytest.mark.parametrize(("size", "least"), [(256, 1.0), (64, 0.85)])
def test_operations_of_both_halves_are_predicted(tools, denoiser, process, size, least):
    """Clean and noisy positions in trunk and embedding, noisy ones alone in the head. Of scans it is the most."""
    length, process = 256, tools.process_of(process, class_of(process).default_schedule, VOCABULARY)
    config, told = ModelConfig(d_model=128, embedding_dim=4), config_class("conditioning", "none")()
    trunk = config_class("denoisers", denoiser)(n_layers=6, conditioning=told)
    model = DenoisingModel(config, trunk, process)
    tokens = fold(torch.zeros(2, length, dtype=torch.long), size)
    x, level = process.encode(tokens, model.table()).detach(), torch.full((len(tokens), 1), 0.5, dtype=torch.float64)
    noisy = Noisy(x, level, blocks=Blocks(tokens, length // size))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(noisy)
    predicted = model_flops_per_token(config, trunk, process, length, block_size=size)
    assert least <= counter.get_total_flops() / (2 * length * predicted) <= 1
    assert predicted < 2 * model_flops_per_token(config, trunk, process, length)


def test_a_step_with_self_conditioning_passes_twice_over_all_blocks(tools):
    process = tools.process_of("gaussian", "cosine", VOCABULARY)
    trunk, plain = config_class("denoisers", "transformer")(), ModelConfig(self_conditioning=0.25)
    each = model_flops_per_token(plain, trunk, process, 64, block_size=16)
    assert training_flops_per_token(plain, trunk, process, 64, block_size=16) == 4 * each
