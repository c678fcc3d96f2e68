"""What a person can get wrong: one line on standard error, status 2, nothing written and nothing lost."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess

import pytest

CONFIG = [
    (["trainin.steps=3"], "trainin: unknown key 'trainin'; expected one of block_size, ", "did you mean 'training'?"),
    (["training.step=3"], "training.step: unknown key 'step'; expected one of accelerator, ", "did you mean 'steps'?"),
    (
        ["denoiser=mambo"],
        "denoiser: no variant 'mambo'; expected one of dimba, dit, hybrid, mamba, ",
        "did you mean 'mamba'?",
    ),
    (["denoiser.mixer.name=atention"], "denoiser.mixer: no variant 'atention'; ", "did you mean 'attention'?"),
    (["training.precision=fp8"], "training.precision: no choice 'fp8'; expected one of auto, bfloat16, float32"),
    (["data.tokenizer=byte"], "tokenizer: no variant 'byte'; expected one of bytes", "did you mean 'bytes'?"),
    (["training.steps=many"], "training.steps: got 'many', expected int"),
    (["training.steps=2.5"], "training.steps: got 2.5, expected int"),
    (["training.steps="], "training.steps: got None, expected int (a whole number, like 3); give it a value, or "),
    (["denoiser=hybrid", "denoiser.pattern="], "denoiser.pattern: got None, expected str (a text, like NAME); give "),
    (["training=3"], "training: got 3, expected a mapping of keys to values"),
    (["training.betas=[0.9]"], "training.betas: got [0.9], expected a list of 2 numbers, like [0.5, 0.5]\n"),
    (["training.steps=0"], "training: steps: got 0, expected at least 1"),
    (["training.lr=0"], "training: lr: got 0.0, expected a positive number"),
    (["training.lr=inf"], "training: lr: got inf, expected a positive number"),
    (["training.grad_clip=nan"], "training: grad_clip: got nan, expected at least 0"),
    (["training.optimizer=moun"], "training.optimizer: no variant 'moun'; expected one of adamw, muon", "'muon'?"),
    (["training.optimizer.momentum=1"], "training.optimizer.momentum: unknown key 'momentum'; expected one of eps"),
    (["training.optimizer={name: muon, momentum: 1}"], "training.optimizer: momentum: got 1.0, expected 0 <= "),
    (["training.lr_schedule=wsb"], "training.lr_schedule: no variant 'wsb'; expected one of constant, cosine, wsd"),
    (
        ["training.lr_schedule=wsd", "training.warmup_steps=11"],
        "training: lr_schedule wsd: got 11 steps of warm-up and 2 of decay in 12 steps; expected room for both",
    ),
    (
        ["training.lr_multipliers={embedd: 3.0}"],
        "tiny: lr_multipliers: got 'embedd', with which no parameter's name begins; expected ",
        "did you mean 'embed'?",
    ),
    (["training.lr_multipliers.embed=fast"], "training.lr_multipliers: got {'embed': 'fast'}, expected a mapping of "),
    (["training.lr_multipliers.denoiser.stack=fast"], "got {'denoiser.stack': 'fast'}, expected a mapping of names "),
    (["training.lr_multipliers={a: {b: 1}, a.b: 2}"], "training.lr_multipliers: got 'a.b' twice, expected one value"),
    (["training.lr_multipliers={embed: -1}"], "training: lr_multipliers: got -1.0 for 'embed', expected 0 or a "),
    (["training.ema_decays=[0.9]"], "training: ema_decays: got [0.9] beside ema_decay 0.9, expected every decay once"),
    (["training.ema_decays=[2]"], "training: ema_decays: got [2.0], expected numbers with 0 < decay < 1"),
    (["prompt.fraction=2"], "prompt: fraction: got 2.0, expected 0 to 1"),
    (["evaluation.draws=0"], "evaluation: draws: got 0, expected at least 1"),
    (["seed=4294967296"], "seed: got 4294967296, expected 0 to 4294967295"),
    (["seed=-1"], "seed: got -1, expected 0 to 4294967295"),
    (["steps"], "override 'steps': expected key=value"),
    (["=3"], "override '=3': expected key=value"),
    (["training.steps=[1"], "override 'training.steps=[1': while parsing a flow sequence"),
    (
        ["process.log_snr_max=5"],
        "process: got keys ['log_snr_max'] for 'auto'; expected the variant's name beside them",
    ),
    (["denoiser.mlp_expansion=0.2"], "denoiser: mlp_expansion: got 0.2, which at d_model 32 is less than 8 channels "),
    (["denoiser.mixer.head_dim=6"], "tiny: head_dim: got 6, expected a divisor of d_model 32"),
    (["denoiser.mixer.head_dim=5"], "denoiser.mixer: head_dim: got 5, expected an even number for the rotary"),
    (["training.micro_batch=3"], "global batch 8 cannot be cut into micro-batches: it must be a multiple of "),
    (["data.num_workers=-1"], "data: num_workers=-1, val_sequences=12; both must be 0 or more"),
    # pairings without a meaning
    (
        ["objective=masked", "process=gaussian"],
        "objective 'masked' has no meaning for process 'gaussian': it is a bound ",
    ),
    (["sampler=ddim"], "sampler 'ddim' cannot sample process 'masked': its step is made for gaussian"),
    (["denoiser=dimba", "denoiser.conditioning=none"], "denoiser: conditioning: got 'none', which leaves the "),
    (
        ["denoiser=hybrid", "denoiser.pattern=MMM"],
        "denoiser: pattern: 'MMM' over 6 layers gives 'MMMMMM', expected at ",
    ),
    (["denoiser=hybrid", "denoiser.pattern=A"], "at least one Mamba (M) and one attention (A) layer"),
    (
        ["denoiser=hybrid", "denoiser.n_layers=5"],
        "denoiser: pattern: 'MMMMMA' over 5 layers gives 'MMMMM', expected at ",
    ),
    (["denoiser=hybrid", "denoiser.pattern=MXA"], "denoiser: pattern: got 'MXA', expected a string of M and A"),
    (
        ["denoiser=mamba", "denoiser.mixer.inner=attention"],
        "denoiser.mixer: inner: got attention, which sees both directions already; expected a causal mixer",
    ),
    # what is not here
    (["denoiser=mamba", "denoiser.mixer.inner.kernel=mamba_ssm"], "kernel 'mamba_ssm': ", "or set kernel=auto"),
    (["denoiser.mixer.kernel=flex", "training.accelerator=cpu"], "kernel 'flex': it needs a cuda", "kernel=auto"),
    (
        ["data.path=nowhere"],
        "nowhere: no such folder of shards; make it: python -m data_prep shard --source python-docs --out nowhere "
        "--tokenizer bytes --length 32",
    ),
    (["data.path=tiny.yaml"], "tiny.yaml: no such folder of shards; make it: "),
    (["data.length=64"], "shards made with length=32, the experiment says data.length=64", "--length 64"),
]


@pytest.mark.parametrize("case", CONFIG, ids=lambda case: " ".join(case[0]))
def test_overrides(place, case):
    overrides, *texts = case
    line = place.refused("train", "tiny.yaml", "run=new", *overrides)
    assert all(text in line for text in texts), line


def test_a_gpu_that_is_not_here(place):
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    line = place.refused("train", "tiny.yaml", "run=new", "training.accelerator=cuda")
    assert line == (
        "error: training.accelerator: got cuda, but PyTorch finds no GPU here; set training.accelerator=cpu\n"
    )


FILES = {
    "loop": ("base: loop.yaml", "loop.yaml: base leads back to itself"),
    "ring": ("base: ring2.yaml", "ring.yaml: base leads back to itself"),
    "ring2": ("base: ring.yaml", "ring2.yaml: base leads back to itself"),
    "orphan": (
        "base: quickstrat",
        "experiment 'quickstrat': no such file, and no such name under experiments/; did you ",
    ),
    "broken": ("training: {steps: 3\n  - x", "broken.yaml: not a readable YAML file: while parsing a flow mapping"),
    "tab": ("training:\n\tsteps: 1", "tab.yaml: not a readable YAML file: while scanning for the next token"),
    "number": ("3", "number.yaml: not a readable YAML file: Invalid loaded object type: int"),
    "list": ("- 1", "list.yaml: got list, expected a mapping of keys to values"),
    "twice": ("seed: 1\nseed: 2", "twice.yaml: not a readable YAML file: ", "found duplicate key seed"),
    "nothing": ("training:", "training: got None, expected a mapping of keys to values"),
    "interpolation": ("seed: ${other}", "interpolation.yaml: not a readable YAML file: Interpolation key 'other' not "),
    "latin": ("name: caf\xe9", "latin.yaml: not a readable YAML file: 'utf-8' codec can't decode byte 0xe9"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(place, name):
    for other, (text, *_) in FILES.items():
        (place.folder / f"{other}.yaml").write_bytes(text.encode("latin-1" if other == "latin" else "utf-8"))
    for command in ("train", "describe"):
        line = place.refused(command, f"{name}.yaml")
        assert all(text in line for text in FILES[name][1:]), line


def test_no_such_experiment(place):
    line = place.refused("train", "quickstrat")
    assert (
        "experiment 'quickstrat': no such file, and no such name under experiments/; did you mean 'quickstart'?" in line
    )
    assert "expected a YAML file or one of " in place.refused("describe", "nowhere.yaml")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian"], "argument COMMAND: invalid choice: 'trian'"),
        ([], "the following arguments are required: COMMAND; see python -m diffusion_lm --help"),
        (["train"], "the following arguments are required: experiment; see python -m diffusion_lm train --help"),
        (["train", "tiny.yaml", "--jsn"], "unrecognized arguments: --jsn"),
        (["evaluate", "run", "--draws", "few"], "argument --draws: invalid int value: 'few'"),
        (["evaluate", "draws=3"], "draws=3: no run here (no config.yaml); expected the folder of a run"),
    ],
)
def test_arguments(place, argv, text):
    assert text in place.refused(*argv)


def test_shards_with_another_tokenizer(place):
    copy = place.folder / "copy"
    shutil.copytree(place.folder / "shards", copy)
    facts = json.loads((copy / "dataset.json").read_text())
    for change, text in (
        (
            {"tokenizer": "words"},
            "copy: shards made with tokenizer=words, the experiment says data.tokenizer=bytes; set ",
        ),
        (
            {"tokenizer_fingerprint": "0"},
            "copy: made with a tokenizer 'bytes' of fingerprint 0, the one installed has ",
        ),
    ):
        (copy / "dataset.json").write_text(json.dumps({**facts, **change, "facts_sha256": ""}))
        assert text in place.refused("train", "tiny.yaml", "run=new", "data.path=copy")


def test_a_shard_that_is_missing(place):
    copy = place.folder / "copy"
    shutil.copytree(place.folder / "shards", copy)
    (copy / "val-000000.tar").unlink()
    line = place.refused("train", "tiny.yaml", "run=new", "data.path=copy")
    assert "copy/val-000000.tar: shard is missing; make the shards again in an empty folder" in line


@pytest.fixture(scope="module")
def trained(shared):
    """A short finished run, to copy."""
    shared.train("short", "training.steps=2", "training.val_every=2")
    return shared.folder / "short"


def test_another_config_in_the_folder(place, trained):
    shutil.copytree(trained, place.folder / "run")
    same = ["training.steps=2", "training.val_every=2"]
    line = place.refused("train", "tiny.yaml", "run=run", *same, "training.lr=1e-3", "denoiser.mlp_expansion=2")
    assert (
        "run was started with another config (denoiser.mlp_expansion: 4.0 -> 2.0; training.lr: 0.002 -> 0.001)" in line
    )
    assert "give run=NEW for another folder, or repeat the command with the values it was started with" in line
    assert place.train("run", *same).out.startswith("run is finished")


def test_a_checkpoint_of_another_config(place, trained):
    place.train("run", "training.lr=1e-3", faults=[stop_at_step(2)], status=75)
    shutil.copy(trained / "checkpoints" / "last.ckpt", place.folder / "run" / "checkpoints" / "last.ckpt")
    for argv in (["train", "tiny.yaml", "run=run", "training.lr=1e-3"], ["evaluate", "run"], ["generate", "run"]):
        line = place.refused(*argv)
        assert "run/checkpoints/last.ckpt: belongs to another config than run/config.yaml (" in line
        assert "training.lr: 0.002 -> 0.001" in line and "put the right file back, or give run=NEW" in line


def test_a_checkpoint_from_before_a_key_existed(place, trained):
    """Keys that it does not know have their defaults; here one is taken out, as if it came later."""
    import torch

    shutil.copytree(trained, place.folder / "run")
    file = place.folder / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["experiment"]["times"], checkpoint["experiment"]["prompt"]["kind"]
    torch.save(checkpoint, file)
    assert place.json("evaluate", "run")["step"] == 2


@pytest.mark.parametrize("kind", ["garbage", "cut", "empty", "foreign"])
def test_a_broken_checkpoint(place, trained, kind):
    place.train("run", faults=[stop_at_step(2)], status=75)
    file = place.folder / "run" / "checkpoints" / "last.ckpt"
    if kind == "foreign":
        import torch

        torch.save({"weights": torch.zeros(3)}, file)
    else:
        whole = file.read_bytes()
        file.write_bytes({"garbage": b"no checkpoint", "cut": whole[: len(whole) // 2], "empty": b""}[kind])
    for argv in (["train", "tiny.yaml", "run=run"], ["evaluate", "run"]):
        line = place.refused(*argv)
        assert "run/checkpoints/last.ckpt: not a checkpoint of this project (" in line
        assert "move it away to start from step 0, or put the right file back" in line


def stop_at_step(call):
    place = "diffusion_lm.lightning_module:DiffusionModule.training_step"
    return {"place": place, "call": call, "signal": int(signal.SIGTERM), "when": "before"}


def test_a_folder_in_use(place):
    place.train("run", faults=[stop_at_step(2)], status=75)
    with open(place.folder / "run" / ".lock", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        line = place.refused("train", "tiny.yaml", "run=run")
    assert line == "error: run is in use by another process; wait for it, or give another folder with run=DIR\n"
    place.train("run")


def test_a_second_process_in_the_same_folder(place):
    long = ["training.steps=3000", "training.val_every=1000", "training.samples=0"]
    first = place.start("train", "tiny.yaml", "run=run", *long)
    first.until(lambda: (place.folder / "run" / "checkpoints" / "last.ckpt").exists())
    code, _, err = place.command("train", "tiny.yaml", "run=run", *long)
    assert code == 2 and err == (
        "error: run is in use by another process; wait for it, or give another folder with run=DIR\n"
    )
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait().code == 75


def test_a_folder_that_cannot_be_made(place):
    (place.folder / "file").write_text("kept")
    line = place.refused("train", "tiny.yaml", "run=file/run")
    assert line == "error: file/run: cannot write to the run folder (Not a directory); give another with run=DIR\n"
    assert "error: file: cannot write to the run folder (" in place.refused("train", "tiny.yaml", "run=file")


def test_not_a_run(place):
    place.train("run", "training.checkpoint_every=99", faults=[{**stop_at_step(2), "signal": 9}], status=-9)
    for command in ("evaluate", "generate"):
        for folder in ("nowhere", "shards"):
            line = place.refused(command, folder)
            assert (
                line == f"error: {folder}: no run here (no config.yaml); expected the folder of a run, like runs/NAME\n"
            )
        line = place.refused(command, "run")
        assert "run: the run has no checkpoint yet; train it: python -m diffusion_lm train run/config.yaml" in line


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["evaluate", "--draws", "0"], "draws: got 0, expected at least 1"),
        (["evaluate", "--sequences", "-1"], "sequences: got -1, expected 0 or more"),
        (
            ["generate", "--prompt", "x" * 32],
            "prompt: 32 tokens leave no room in 32; give a shorter prompt or a larger ",
        ),
        (["generate", "--prompt", "abc", "--length", "2"], "prompt: 3 tokens leave no room in 2"),
        (["generate", "--count", "0"], "count: got 0, expected at least 1"),
        (["generate", "--length", "0"], "length: got 0, expected at least 1"),
        (
            ["generate", "num_stps=3"],
            "sampler.num_stps: unknown key 'num_stps'; expected one of guidance, num_steps; did you mean ",
        ),
        (["generate", "name=ddim"], "sampler 'ddim' cannot sample process 'masked'"),
        (["generate", "num_steps=0"], "sampler: num_steps: got 0, expected at least 1"),
    ],
)
def test_evaluate_and_generate(shared, argv, text):
    command, *rest = argv
    assert text in shared.refused(command, "run", *rest)


def test_training_that_diverges(place):
    """Not bad input, but one line too; the sweep's worker shows it as the reason."""
    done = place.train("run", "training.lr=1e30", "training.grad_clip=0", "training.warmup_steps=0", status=1)
    assert done.err == (
        "error: tiny: the bound is no number at step 4, training has diverged; start again with run=NEW and a lower "
        "training.lr, or a longer training.warmup_steps\n"
    )
    assert not place.lines("run") and not (place.folder / "run" / "result.json").exists()


@contextlib.contextmanager
def full_disk(place):
    """`run` on a disk with 300 kB left, if this machine lets us mount one; else a limit on the size of files."""
    folder = place.folder / "run"
    folder.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True).returncode == 0
    )

    def fill():
        if not mounted:
            return 300_000
        free = shutil.disk_usage(folder).free
        (folder / "filler").write_bytes(bytes(free - 300_000))
        return None

    try:
        yield fill, folder / "filler"
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def test_a_full_disk(place, shared):
    with full_disk(place) as (fill, filler):
        place.train("run", faults=[stop_at_step(2)], status=75)
        file = place.folder / "run" / "checkpoints" / "last.ckpt"
        before = file.read_bytes()
        limit = fill()
        code, _, err = place.command("train", "tiny.yaml", "run=run", limit=limit)
        assert code == 1
        why = "File too large" if limit else "No space left on device"
        assert err.startswith(f"error: run: {why}; make room, then repeat the command: it goes on from the last ")
        assert err.count("\n") == 1
        assert file.read_bytes() == before and os.listdir(file.parent) == ["last.ckpt"]
        filler.unlink(missing_ok=True)
        assert "resuming at step 2\n" in place.train("run").out
        for tag in ("train/loss", "val/nll"):
            assert place.curves("run")[tag] == shared.curves("run")[tag]
