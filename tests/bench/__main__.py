"""`make bench`: Regraft and its peers on the same data, splits, seeds and machine, and a page.

Writes docs/benchmarks.md and, beside it, the raw numbers that the page is made of.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
from bench.page import REGRAFT, write_page
from bench.processes import run_measured, thread_limits
from bench.results import Results, Trial, write_results
from bench.scratch import (
    ROOT,
    Copy,
    answers_of,
    link_images,
    parse_value,
    run_regraft,
    write_task,
)
from bench.speed import measure_speeds

from tasks.runtime.machine import read_machine

PEERS = {  # name -> script, and the rates that val chooses from; the documented one comes first
    "timm loop": ("peer_timm.py", (3e-4, 1e-4, 1e-3)),
    "fastai fine_tune": ("peer_fastai.py", (2e-3, 1e-3, 5e-3)),
    "Lightning BackboneFinetuning": ("peer_lightning.py", (1e-3, 3e-4, 3e-3)),
}
SCRIPTS = Path(__file__).parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of class folders (default: ELPV)")
    parser.add_argument("--images", type=int, help="use only about so many of its images")
    parser.add_argument("--px", type=int, help="side of the images (default: as params.yaml)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="values of Regraft's params.yaml"
    )
    parser.add_argument("--epochs", type=int, help="of each peer (default: finetune.epochs)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--peers", nargs="*", choices=[*PEERS, "none"], default=list(PEERS))
    parser.add_argument("--rates", type=int, default=3, help="tried by each peer, its own first")
    parser.add_argument("--threads", type=int, default=read_machine().compute_threads)
    parser.add_argument("--no-regraft", action="store_true", help="run the peers only")
    parser.add_argument("--no-speed", action="store_true", help="do not measure single parts")
    parser.add_argument("--python", default=".venv-bench/bin/python", help="of the peers")
    parser.add_argument("--note", default="", help="a sentence for the page, if something was odd")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the page goes")
    return parser.parse_args(argv)


class Bench:
    """One run of the benchmark.

    Args:
        options: As parsed.
        folder: Scratch folder.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.environment = thread_limits(options.threads)

    def run(self) -> Results:
        """Measure everything that is asked for."""
        options = self.options
        shown = ["set", "peers", "seeds", "epochs", "px", "threads", "rates"]
        results = Results(
            command=f"make bench BENCH='{' '.join(map(quote, sys.argv[1:]))}'",
            machine=describe_machine(options.python),
            data=f"Images: {options.data.name if options.data else 'ELPV, as packaged'}.",
            options={name: show(getattr(options, name)) for name in shown},
            note=options.note,
        )
        for seed in options.seeds:
            copy = self.prepare(seed)
            results.test_sets[str(seed)] = answers_of(copy.manifest())
            if not options.no_regraft:
                say(f"{REGRAFT}, seed {seed}")
                results.trials.extend(run_regraft(copy, seed=seed))
                self.save(results)
            for trial in self.run_peers(copy, seed):
                results.trials.append(trial)
                self.save(results)
        if not options.no_speed:
            say("speed of the parts")
            found = measure_speeds(self.folder / "speed", self.environment, copy)
            results.speeds.update(found)
            self.save(results)
        return results

    def save(self, results: Results) -> None:
        """Write page and raw numbers as far as they are measured."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        write_results(self.options.out / "benchmarks.json", results)
        (self.options.out / "benchmarks.md").write_text(write_page(results))

    def prepare(self, seed: int) -> Copy:
        """Copy the project and let it split the images."""
        values: dict[str, object] = {"seed": seed}
        values |= dict(map(parse_value, self.options.set))
        values |= {"augment.image_px": self.options.px} if self.options.px else {}
        if self.options.data:
            values["ingest.source"] = str(self.options.data.absolute())
        copy = self._copy(f"seed-{seed}", values)
        if self.options.images:
            chosen = link_images(copy, self.options.images, self.folder / f"images-{seed}")
            copy = self._copy(f"seed-{seed}-few", {**values, "ingest.source": str(chosen)})
        return copy

    def _copy(self, name: str, values: dict[str, object]) -> Copy:
        copy = Copy.make(
            self.folder / name, values, python=sys.executable, environment=self.environment
        )
        copy.run("ingest")
        return copy

    def run_peers(self, copy: Copy, seed: int) -> Iterator[Trial]:
        """Train every peer at every rate."""
        chosen = [name for name in self.options.peers if name != "none"]
        batch_size = copy.params().finetune.batch_size
        task = write_task(copy, copy.root, batch_size=batch_size, threads=self.options.threads)
        for name in chosen:
            for rate in PEERS[name][1][: self.options.rates]:
                yield self.run_peer(name, task, rate=rate, seed=seed)

    def run_peer(self, name: str, task: Path, *, rate: float, seed: int) -> Trial:
        """Train a peer at one rate, in a process of its own."""
        say(f"{name}, seed {seed}, rate {rate:g}")
        answer = task.parent / f"answer-{name.partition(' ')[0]}-{rate:g}.json"
        epochs = self.options.epochs or Copy(task.parent, "", {}).params().finetune.epochs
        python = str((ROOT / self.options.python).absolute())
        command = [python, str(SCRIPTS / PEERS[name][0]), str(task), str(answer)]
        command += [f"--rate={rate!r}", f"--epochs={epochs}", f"--seed={seed}"]
        measured = run_measured(
            command, cwd=task.parent, environment=self.environment, log=task.parent / "peers.log"
        )
        found = json.loads(answer.read_text())
        return Trial(
            method=name,
            seed=seed,
            rate=rate,
            seconds=measured.seconds,
            peak_bytes=measured.peak_bytes,
            **found,
        )


def quote(text: str) -> str:
    """Quote an option so that it can stand within single quotes."""
    return f'"{text}"' if " " in text else text


def show(value: object) -> str:
    """Write an option in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return "as params.yaml" if value is None else str(value)


def describe_machine(peers_python: str) -> dict[str, str]:
    """Name what times depend on."""
    packages = ("torch", "timm", "onnxruntime", "numpy")
    facts = {
        "processor": _processor(),
        "cores": str(read_machine().compute_threads),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    asked = "from importlib.metadata import version as v; print(v('fastai'), v('lightning'))"
    told = subprocess.run(
        [str(ROOT / peers_python), "-c", asked], capture_output=True, text=True, check=False
    ) if (ROOT / peers_python).exists() else None  # fmt: skip
    if told and told.returncode == 0:
        facts["fastai"], facts["lightning"] = told.stdout.split()
    return facts


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def say(text: str) -> None:
    """Tell what runs now."""
    print(f"bench: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a command line tool


def main(argv: Sequence[str] | None = None) -> None:
    """Run and write the page."""
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        Bench(options, Path(folder)).run()
    say(f"wrote {options.out / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
