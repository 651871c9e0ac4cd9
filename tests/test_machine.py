import os
import subprocess
import sys

import pytest

from tasks.errors import ParamsError
from tasks.runtime import machine as module
from tasks.runtime.machine import Machine, prepare_memory, read_machine, read_place

GLIBC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
UNSET = (*GLIBC_VARIABLES, *TORCHRUN_VARIABLES, "THP_MEM_ALLOC_ENABLE")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [*os.environ]:
        if name.startswith("REGRAFT_") or name in UNSET:
            monkeypatch.delenv(name)


def test_without_variables_everything_is_found_out():
    machine = read_machine()
    assert (machine.device, machine.engine, str(machine.scratch)) == ("auto", "auto", ".regraft")
    assert machine.compute_threads == machine.decode_workers >= 1


def test_variables_set_threads_and_workers(monkeypatch):
    monkeypatch.setenv("REGRAFT_THREADS", "3")
    assert (read_machine().compute_threads, read_machine().decode_workers) == (3, 3)
    monkeypatch.setenv("REGRAFT_WORKERS", "5")
    assert (read_machine().compute_threads, read_machine().decode_workers) == (3, 5)


def test_threads_are_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 7, 9}, raising=False)
    assert Machine().compute_threads == 3


def test_threads_are_all_cores_where_the_system_cannot_tell(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert Machine().compute_threads == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert Machine().compute_threads == 1


def test_processes_on_a_host_share_its_threads(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("REGRAFT_THREADS", "5")
    assert (read_machine().compute_threads, read_machine().decode_workers) == (2, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert read_machine().compute_threads == 1


def test_without_torchrun_a_process_is_the_only_one():
    place = read_place()
    assert (place.rank, place.world_size, place.launched) == (0, 1, False)


def test_torchrun_tells_the_place(monkeypatch):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    place = read_place()
    assert (place.rank, place.world_size, place.local_rank, place.launched) == (5, 8, 1, True)
    monkeypatch.setenv("RANK", "gold")
    with pytest.raises(ParamsError, match="environment variable RANK is 'gold'; "):
        read_place()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROCESSES", "0"),
        ("DEVICE", "tpu"),
        ("THREADS", "-1"),
        ("THREADS", "many"),
        ("ENGINE", "fast"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(monkeypatch, name, value):
    monkeypatch.setenv(f"REGRAFT_{name}", value)
    with pytest.raises(ParamsError, match=rf"environment variable REGRAFT_{name} is '{value}'; "):
        read_machine()


def test_every_wrong_variable_gets_a_line(monkeypatch):
    monkeypatch.setenv("REGRAFT_DEVICE", "tpu")
    monkeypatch.setenv("REGRAFT_WORKERS", "x")
    with pytest.raises(ParamsError) as caught:
        read_machine()
    assert len(str(caught.value).split("\n")) == 2


class FakeLibrary:
    def __init__(self):
        self.calls = []

    def mallopt(self, option, value):
        self.calls.append((option, value))


def test_memory_is_kept_and_huge_pages_are_asked_for(monkeypatch):
    library = FakeLibrary()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    prepare_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    assert {option for option, _ in library.calls} == {-1, -2, -3, -8}
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")


@pytest.mark.parametrize("name", GLIBC_VARIABLES)
def test_what_the_user_set_stays(monkeypatch, name):
    library = FakeLibrary()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv(name, "1000")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    prepare_memory()
    assert library.calls == []
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")

    def fail(name):
        raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", fail)
    prepare_memory()


@pytest.mark.parametrize(("given", "told"), [(None, "4"), ("20", "20")])
def test_idle_threads_of_openblas_sleep_unless_the_user_says_otherwise(monkeypatch, given, told):
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", given)
    code = (
        "import sys, tasks, os; assert 'numpy' not in sys.modules; "
        "print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{told}\n"


def test_the_real_c_library_takes_the_settings():
    prepare = "from tasks.runtime.machine import prepare_memory; prepare_memory()"
    code = f"{prepare}; print(len(bytes(10**8)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "100000000\n"
