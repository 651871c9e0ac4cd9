"""Several processes of one stage: the same curve, the same bytes, one writer, one message."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, tells, with_values
from ruamel.yaml import YAML
from served import free_port
from test_finetune import WAITING, Project, arguments_in, digests, outputs
from tiny_finetune import COUNTS

from tasks.artifacts.arrays import read_array
from tasks.artifacts.pixels import StoreWriter, store_info
from tasks.artifacts.records import Arm, BackboneChoice, Split, write_record
from tasks.artifacts.tables import HistoryRow, Manifest, ManifestRow, read_rows, write_manifest
from tasks.errors import EngineError
from tasks.params import Params
from tasks.runtime import processes as module
from tasks.runtime.machine import Machine
from tasks.runtime.processes import Processes, join_processes

SETTINGS = {"REGRAFT_DEVICE": "cpu", "REGRAFT_ENGINE": "torch", "REGRAFT_THREADS": "2"}
UNEVEN = {"finetune.batch_size": 7}  # of 30 images
ARMS: tuple[Arm, ...] = ("fine_tune", "scratch")


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start Python from the root, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **SETTINGS, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait; give exit status and what went to stderr."""
    _, errors = process.communicate(timeout=200)
    return process.returncode, errors


# the split of the work ---------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "world"), [(7, 2), (8, 2), (1, 4), (3, 4), (100, 7), (0, 3)])
def test_shares_cover_everything_once_in_order(count: int, world: int):
    shares = [Processes(rank, world).share(count) for rank in range(world)]
    things = range(count)
    assert [one for share in shares for one in things[share]] == list(things)
    sizes = [len(things[share]) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "find_device", lambda machine: module.torch.device("cuda"))
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    message = "4 processes on this host, but torch sees 2 CUDA devices; lower REGRAFT_PROCESSES"
    with pytest.raises(EngineError, match=message), join_processes(Machine(), seed=0):
        pass


# three processes against one, in one launch ------------------------------------------------------

# Runs each [stage, port, arguments] of its input. Its three processes have 3, 2 and 2 images of a
# batch of 7, and 1, 1 and none of the last one.
PROGRAM = """
import json, os, sys
import numpy as np, torch
from torch import nn
from tasks import extract, finetune
from tasks.runtime.processes import join_processes
from tasks.runtime.machine import Machine
from tasks.training.shared_norm import SharedBatchNorm


def normalize(file):
    torch.manual_seed(3)
    images, wanted, layer = torch.randn(5, 4, 3, 3) + 7, torch.randn(5, 4, 3, 3), nn.BatchNorm2d(4)
    with join_processes(Machine(device="cpu"), seed=0) as processes:
        own = processes.share(5)
        inputs = images[own].requires_grad_()
        with SharedBatchNorm(processes, 1.0):
            outputs = layer(inputs)
        (outputs * wanted[own]).square().sum().backward()
        whole = torch.zeros(2, 5, 4, 3, 3)
        whole[0, own], whole[1, own] = outputs.detach(), inputs.grad
        processes.add(whole)
        processes.add(layer.weight.grad)
    if processes.first:
        np.savez(file, outputs=whole[0], gradients=whole[1], weight=layer.weight.grad.numpy(),
                 mean=layer.running_mean.numpy(), var=layer.running_var.numpy())


RUN = {"norm": lambda arguments: normalize(*arguments), "finetune": finetune.main,
       "extract": extract.main}
for stage, port, arguments in json.load(open(sys.argv[1])):
    os.environ["MASTER_PORT"] = port
    os.environ["REGRAFT_ENGINE"] = "auto" if stage == "extract" else "torch"
    RUN[stage](arguments)
"""


def make_pixels(folder: Path) -> list[str]:
    """Write three pixel stores and a manifest; give what extract reads."""
    sizes: list[tuple[Split, int, int]] = [("train", 19, 1), ("val", 9, 0), ("test", 3, 0)]
    rows = [
        ManifestRow(f"{split}{i}.png", "ab"[i % 2], split, f"g{i}", f"sha{i}", 32, 32, "RGB")
        for split, count, _ in sizes
        for i in range(count)
    ]
    write_manifest(folder / "manifest.csv", Manifest(rows))
    named = [f"--manifest={folder / 'manifest.csv'}"]
    for seed, (split, count, views) in enumerate(sizes):
        pixels = np.random.default_rng(seed).integers(
            0, 256, (count * (views + 1), 32, 32, 3), "u1"
        )
        (folder / split).mkdir(parents=True)
        with StoreWriter(folder / split, store_info(count, views=views, image_px=32)) as writer:
            writer.append(pixels)
        named.append(f"--{split}={folder / split}")
    return named


def given_to_extract(root: Path, params: Params) -> list[str]:
    """Write parameters and the choice of the backbone; give them as arguments."""
    with (root / "params.yaml").open("w") as file:
        YAML().dump(params.model_dump(mode="json"), file)
    named = params.backbone
    choice = BackboneChoice(name=named.name, weights=named.weights, images=0, ranking=[])
    write_record(root / "choice.json", choice)
    return [f"--params={root / 'params.yaml'}", f"--choice={root / 'choice.json'}"]


def features_in(folder: Path) -> list[str]:
    """What extract writes."""
    splits = [f"--{split}-features={folder / split}" for split in ("train", "val", "test")]
    files = [f"--probe={folder / 'probe.safetensors'}", f"--backbone={folder / 'backbone.json'}"]
    return splits + files


class Compared:
    """Folders `one` and `three`, each with what that many processes wrote."""

    def __init__(self, root: Path, defaults: Params, tiny: Params) -> None:
        self.root = root
        for arm in ARMS:
            (root / arm).mkdir()
            self.project = Project(root / arm, defaults)
            self.project.arguments(arm, UNEVEN)
        tiny = with_values(tiny, {"extract.batch_size": 4})
        self.pixels = [*given_to_extract(root, tiny), *make_pixels(root / "pixels")]
        self.run("one", 1)
        self.run("three", 3)

    def run(self, name: str, world: int) -> None:
        jobs = [
            ("norm", [str(self.root / f"{name}.npz")]),
            ("extract", self.pixels + features_in(self.root / name / "extract")),
            *(
                (
                    "finetune",
                    arguments_in(self.root / arm / "in") + outputs(self.root / name / arm),
                )
                for arm in ARMS
            ),
        ]
        (self.root / "jobs.json").write_text(
            json.dumps([[s, str(free_port()), a] for s, a in jobs])
        )
        started = [
            start(
                ["-c", PROGRAM, str(self.root / "jobs.json")],
                RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1",
                REGRAFT_SCRATCH=str(self.root / "kept"),
            )
            for rank in range(world)
        ]
        for process in started:
            status, errors = finish(process)
            assert status == 0, errors


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, default_params: Params, tiny_params: Params
) -> Compared:
    return Compared(tmp_path_factory.mktemp("compared"), default_params, tiny_params)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_curve_does_not_depend_on_how_many_processes_share_a_batch(
    compared: Compared, arm: Arm
):
    one, three = (compared.root / name / arm for name in ("one", "three"))
    single, shared = (read_rows(at / "history.csv", HistoryRow) for at in (one, three))
    assert single
    for mine, other in zip(map(asdict, single), map(asdict, shared), strict=True):
        assert other.pop("rates") == pytest.approx(mine.pop("rates"), rel=1e-4)
        assert other == pytest.approx(mine, rel=1e-4)
    logits = [read_array(folder / "val_logits.npy") for folder in (one, three)]
    assert logits[0].shape == (COUNTS["val"], 3)
    np.testing.assert_allclose(*logits, atol=1e-3)


@pytest.mark.slow
def test_batch_norm_of_a_shared_batch_is_that_of_the_whole_one(compared: Compared):
    found = np.load(compared.root / "three.npz")
    torch.manual_seed(3)
    images, wanted = torch.randn(5, 4, 3, 3) + 7, torch.randn(5, 4, 3, 3)
    layer = torch.nn.BatchNorm2d(4)
    outputs = layer(images.requires_grad_())
    (outputs * wanted).square().sum().backward()
    expected = {
        "outputs": outputs.detach(),
        "gradients": images.grad,
        "weight": layer.weight.grad,
        "mean": layer.running_mean,
        "var": layer.running_var,
    }
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_features_are_the_same_bytes_and_no_part_is_left(compared: Compared):
    one, three = (compared.root / name / "extract" for name in ("one", "three"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 5
    assert files == sorted(path.relative_to(three) for path in three.rglob("*") if path.is_file())
    for file in files:
        assert (one / file).read_bytes() == (three / file).read_bytes(), file


@pytest.mark.slow
def test_all_files_are_written_and_no_checkpoint_or_cache_is_left(compared: Compared):
    assert len(digests(compared.root / "three" / "fine_tune")) == 6
    left = [path for path in (compared.root / "kept").rglob("*") if path.is_file()]
    assert left == []


# started by REGRAFT_PROCESSES or torchrun --------------------------------------------------------


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for(condition: Callable[[], object], seconds: float = 100) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.slow
def test_a_stage_of_two_processes_killed_and_then_stopped_writes_the_same_bytes(
    tmp_path: Path, default_params: Params
):
    values = {"finetune.epochs": 12, "finetune.patience": 12}
    arguments = Project(tmp_path, default_params).arguments(values=values)
    scratch = tmp_path / "scratch"

    def stage(name: str) -> subprocess.Popen[str]:
        command = ["-m", "tasks.finetune", *arguments, *outputs(tmp_path / name)]
        return start(command, REGRAFT_PROCESSES="2", REGRAFT_SCRATCH=str(scratch))

    whole = finish(stage("whole"))
    assert whole[0] == 0, whole[1]
    assert whole[1].count("phase 2 of 2, epoch 12 of 12:") == 1
    assert (scratch / "timings" / "finetune.json").is_file()
    killed = stage("again")
    wait_for(lambda: list(scratch.glob("checkpoints/*/phase-002-epoch-000001.safetensors")))
    workers = workers_of(killed)
    assert len(workers) >= 2
    os.killpg(killed.pid, signal.SIGKILL)
    finish(killed)
    wait_for(lambda: not any(worker.is_running() for worker in workers), 20)
    assert not (tmp_path / "again" / "model.safetensors").exists()
    left = set(scratch.glob("checkpoints/*/phase-*"))
    stopped = stage("again")
    wait_for(lambda: set(scratch.glob("checkpoints/*/phase-*.safetensors")) - left)
    stopped.terminate()
    status, errors = finish(stopped)
    assert status == 143
    assert errors.count("resumed from phase 2") == 1
    assert errors.count("stopped; the next run goes on") == 1
    assert "process 1" not in errors
    status, errors = finish(stage("again"))
    assert status == 0, errors
    assert errors.count("resumed from phase 2") == 1
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(
    tmp_path: Path, default_params: Params
):
    arguments = Project(tmp_path, default_params).arguments()
    scratch, port = tmp_path / "scratch", str(free_port())
    command = ["-c", WAITING, *arguments, *outputs(tmp_path / "again")]
    both = [
        start(
            command,
            RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            REGRAFT_SCRATCH=str(scratch),
        )
        for rank in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    both[1].terminate()
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [finish(process)[1] for process in both]
    assert [process.returncode for process in both] == [143, 143]
    facts = "finetune: stopped", "after step 2", "epoch 2", "phase 1"
    assert tells(told[0].splitlines()[-1], *facts)
    assert "stopped" not in told[1]
    names = [path.name for path in scratch.rglob("*step*")]
    assert names == ["phase-001-epoch-000001-step-000000002.safetensors"]


FAILING = """
import sys
from tasks.runtime.launch import run_in_processes
from tasks.runtime.processes import join_processes
from tasks.errors import ArtifactError
from tasks.runtime.machine import Machine

def main(argv):
    with join_processes(Machine(device="cpu"), seed=0) as processes:
        if processes.rank == 1:
            raise ArtifactError("the disk is full")
        processes.wait()

sys.exit(run_in_processes("toy", main))
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_one_message(tmp_path: Path):
    (tmp_path / "toy.py").write_text(FAILING)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    status, errors = finish(start([*torchrun, str(tmp_path / "toy.py")]))
    assert status == 1
    assert "toy stopped: the disk is full" in errors
    assert errors.count("toy stopped") == 1


@pytest.mark.slow
def test_an_error_in_all_processes_is_one_message_and_nothing_else(
    tmp_path: Path, default_params: Params
):
    arguments = Project(tmp_path, default_params).arguments()
    (tmp_path / "in" / "head.safetensors").unlink()
    command = ["-m", "tasks.finetune", *arguments, *outputs(tmp_path / "out")]
    status, errors = finish(
        start(command, REGRAFT_PROCESSES="2", REGRAFT_SCRATCH=str(tmp_path / "scratch"))
    )
    assert status == 1
    assert errors.startswith("finetune stopped: ")
    assert errors.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_gpus_write_features_like_one(tmp_path: Path, tiny_params: Params):
    pixels = [*given_to_extract(tmp_path, tiny_params), *make_pixels(tmp_path / "pixels")]
    for count in (1, min(2, torch.cuda.device_count())):
        command = ["-m", "tasks.extract", *pixels, *features_in(tmp_path / str(count))]
        status, errors = finish(start(command, REGRAFT_PROCESSES=str(count), REGRAFT_DEVICE="cuda"))
        assert status == 0, errors
        found = read_array(tmp_path / str(count) / "train" / "features.npy")
        np.testing.assert_array_equal(found, read_array(tmp_path / "1" / "train" / "features.npy"))
