"""The page of decisions, written from the cells alone."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.cells import ARMS, Cell, CellArm, Said, Task
from bench.frozen import table
from bench.left_out import leave_one_set_out
from bench.regret import (
    NEEDED,
    RANDOM,
    RIGHT,
    Cells,
    Choice,
    Interval,
    Outcome,
    complete,
    constant,
    follow,
    judge_all,
    mean_over_sets,
)

from tasks.artifacts.words import plural
from tasks.transferability.rules import ONE_PHASE

WORST = 10  # tasks that are told one by one
REGRETS: tuple[Callable[[Outcome], float], ...] = (
    lambda one: one.regret,
    lambda one: one.unbiased,
)
NAMES: dict[CellArm, str] = {
    "frozen": "always frozen",
    "top": "always the top third",
    "most": "always the upper two thirds",
    "all": "always all layers",
}
RATES = {  # whether raised
    False: "always the upper two thirds, rates as written",
    True: "always the upper two thirds, rates raised",
}
DISTANCES: dict[str, Callable[[Said], float]] = {
    "images a class alone": lambda _: 0.0,
    "MMD²": lambda said: said.mmd or 0.0,
    "batch-norm shift": lambda said: said.shift or 0.0,
    "transfer gain": lambda said: -said.gain,
}
INTRO = """\
Every way to transfer was trained on {sets} sets with {levels} training images a class at {px} px:
the frozen head; fine-tuning that ends with the top third, the upper two thirds or all of the blocks
unfrozen; the upper two thirds at the rates that the rules do not choose (`other`: raised or not);
where time allowed, training from scratch. A test set, a quarter of the groups of every
class, is fixed by the seed. Val has a third as many images as train, but at least 5 a class: a user
with 10 images a class has no large val. Everything runs by the stages of the pipeline: the judge on
val rolls phases back and chooses what ships, the frozen head or the arm's model, and what ships is
compared on test. Regret is what that has less than the best arm of the same task, in points of test
accuracy.

There are {cells} cells of {tasks} tasks (set, images a class, seed) with the
frozen head and the three depths:
{parts}.
{scratch} of them have training from scratch as well. {code}Sets count alike. Intervals are 95 %, by
bootstrap over sets, those of the same images together; from so few sets they are rough. The best of
several arms on the same test images is flattered by chance, so that the first regret of every
strategy is too large; the second one has the best arm chosen on one half of the test images and
measured on the other, with nothing to flatter, and may be negative. An arm is credited with what
val ships, even where its own model is better on test. Seconds are processor time of one thread.

`today` are the rules of this version: fine-tune two thirds of the blocks, unless frozen features
are at their ceiling or a race says otherwise, at rates that are raised where frozen features
overfit many images, and let val ship the frozen head where that does not pay. Unless the name of a
strategy says otherwise, rates are those of the rules. `by domain` is what the field's guides
advise: in a similar domain frozen features at up to {few} images a class and a third of the blocks
above, in an intermediate one a third, in a far one two thirds. What the rules of today are was
chosen by cells like these; the tables that are fitted to the other sets are judged
on cells that they have not seen.
"""


def write_page(cells: Sequence[Cell], said: Sequence[Said], command: str, kept: str = "") -> str:
    """Write the page.

    Args:
        cells: All of them.
        said: What all deciders said.
        command: What made the cells.
        kept: What was concluded of them.
    """
    done = complete(cells)
    strategies = gather_strategies(done, said)
    deciders = [name for name in _deciders(said) if name in strategies]
    parts = [
        "# The decision against every other choice",
        f"`{command}` made the cells, with `--page` it wrote this page.",
        _intro(cells, done),
        "## Regret",
        _strategies(done, strategies, deciders),
        *(["## What was kept", kept] if kept else []),
        "## By set and size",
        _by_part(done, {name: strategies[name] for name in [*deciders, *NAMES.values()]}),
        "## What was known and chosen",
        *(_known(done, said, name) for name in deciders),
        "## What every arm ships",
        _accuracies(done),
        "## Is its confidence true?",
        _confidence(done, said, strategies, deciders),
        "## Time that is lost",
        _lost(done),
        "## Where it lost",
        *(_losses(done, said, name) for name in deciders),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def gather_strategies(cells: Cells, said: Sequence[Said]) -> dict[str, Mapping[Task, Choice]]:
    """Give what every strategy chooses on the tasks that it can be judged on."""
    every: dict[str, Mapping[Task, Choice]] = {
        name: follow(cells, said, name) for name in _deciders(said)
    }
    for arm, name in NAMES.items():
        every[name] = dict.fromkeys(cells, constant(arm))
    for raised, name in RATES.items():
        every[name] = {
            task: constant(arm)
            for task, arms in cells.items()
            for arm in ("most", "other")
            if arm in arms and arms[arm].raised is raised
        }
    every["an arm by chance"] = dict.fromkeys(cells, RANDOM)
    leading = [one for one in said if one.decider == next(iter(_deciders(said)), None)]
    every["by domain"] = {
        one.task: constant(advise_by_domain(one)) for one in leading if one.task in cells
    }
    every = {name: choices for name, choices in every.items() if choices}
    if len({one.set for one in leading if one.task in cells}) > 2:
        for name, distance in DISTANCES.items():
            chosen = leave_one_set_out(cells, leading, distance)
            every[f"table by {name}, fitted to the other sets"] = chosen
    return every


def advise_by_domain(said: Said) -> CellArm:
    """Choose as the field's guides advise: the deeper, the farther the domain."""
    if said.domain == "similar" and said.images / said.classes <= ONE_PHASE:
        return "frozen"
    return "most" if said.domain == "far" else "top"


def _deciders(said: Sequence[Said]) -> list[str]:
    return list(dict.fromkeys(one.decider for one in said))


def _intro(cells: Sequence[Cell], done: Cells) -> str:
    counted = [cell for cell in cells if cell.task in done]
    codes = len({cell.code for cell in counted})
    levels = list(dict.fromkeys(task[1] for task in sorted(done, key=lambda task: _place(task)[1])))
    return INTRO.format(
        parts="; ".join(f"{level} images: {_seeds(done, level)}" for level in levels),
        sets=len({task[0] for task in done}),
        levels=", ".join(levels),
        px=", ".join(sorted({str(task[3]) for task in done})),
        cells=len(counted),
        tasks=len(done),
        few=ONE_PHASE,
        scratch=sum("scratch" in arms for arms in done.values()),
        code="" if codes == 1 else f"They were trained by {codes} versions of the code. ",
    )


def _seeds(cells: Cells, level: str) -> str:
    """Tell the seeds of a number of images, and of how many sets they are."""
    sets = Counter(seed for _, images, seed, _ in cells if images == level)
    seeds: dict[int, list[int]] = defaultdict(list)
    for seed in sorted(sets):
        seeds[sets[seed]].append(seed)
    return ", ".join(
        f"{plural(count, 'set')} with {'seed' if len(some) == 1 else 'seeds'} "
        f"{', '.join(map(str, some))}"
        for count, some in seeds.items()
    )


def _strategies(
    cells: Cells, strategies: Mapping[str, Mapping[Task, Choice]], deciders: Sequence[str]
) -> str:
    head = ["strategy", "tasks", "regret, points", "regret by halves, points", "seconds a task"]
    first = deciders[0] if deciders else None
    head += ["of them rolled back", f"beyond `{first}`, points"]
    own = {one.task: one.regret for one in judge_all(cells, strategies[first])} if first else {}
    rows = []
    for name, choices in strategies.items():
        outcomes = judge_all(cells, choices)
        shared = [one for one in outcomes if one.task in own]
        seconds = mean_over_sets(outcomes, lambda one: one.seconds).value
        lost = mean_over_sets(outcomes, lambda one: one.lost).value
        rows.append(
            [
                name,
                str(len(outcomes)),
                show(mean_over_sets(outcomes, lambda one: one.regret)),
                show(mean_over_sets(outcomes, lambda one: one.unbiased)),
                f"{seconds:.0f}",
                f"{lost / seconds:.0%}" if seconds else "-",
                show(mean_over_sets(shared, lambda one: one.regret - own[one.task]))
                if shared and name != first
                else "-",
            ]
        )
    told = (
        "A table by a distance has two thresholds and an arm for each level of distance and of "
        "images a class, all of them fitted to the other sets and tested on the one left out (with "
        "it, those of the same images)."
    )
    return f"{table(head, rows)}\n\n{told}"


def show(interval: Interval) -> str:
    """Write a mean with its interval."""
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _by_part(cells: Cells, strategies: Mapping[str, Mapping[Task, Choice]]) -> str:
    """Write mean regret by set and number of images."""
    parts = list(dict.fromkeys(task[:2] for task in sorted(cells, key=_place)))
    judged = {name: judge_all(cells, choices) for name, choices in strategies.items()}
    rows = []
    for name, level in parts:
        found = [_mean_regret(judged[strategy], (name, level)) for strategy in strategies]
        seeds = sum(task[:2] == (name, level) for task in cells)
        rows.append([name, level, str(seeds), *found])
    head = ["set", "images a class", "seeds", *strategies]
    return f"Mean regret, points.\n\n{table(head, rows)}"


def _mean_regret(outcomes: Sequence[Outcome], part: tuple[str, str]) -> str:
    regrets = [one.regret for one in outcomes if one.task[:2] == part]
    return f"{sum(regrets) / len(regrets):.1f}" if regrets else "-"


def _known(cells: Cells, said: Sequence[Said], decider: str) -> str:
    """Write evidence and choices of a decider, by set and number of images."""
    parts: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for one in sorted(said, key=lambda one: _place(one.task)):
        if one.decider == decider and one.task in cells:
            parts[one.set, one.images_per_class].append(one)
    rows = [
        [
            *part,
            str(some[0].images),
            str(some[0].classes),
            str(cells[some[0].task]["frozen"].test_images),
            _span([one.mmd for one in some], 3),
            _span([one.shift for one in some], 2),
            _span([one.gain for one in some], 2),
            ", ".join(dict.fromkeys(one.domain for one in some)),
            ", ".join(dict.fromkeys(one.arm for one in some)),
            ", ".join(dict.fromkeys(one.confidence for one in some)),
        ]
        for part, some in parts.items()
    ]
    head = ["set", "images a class", "train", "classes", "test", "MMD²", "shift", "gain", "domain"]
    return f"`{decider}`:\n\n{table([*head, 'arm', 'confidence'], rows)}"


def _span(values: Sequence[float | None], digits: int) -> str:
    """Write the least and the largest of some numbers."""
    known = [f"{value:.{digits}f}" for value in sorted(v for v in values if v is not None)]
    return " to ".join(dict.fromkeys([known[0], known[-1]])) if known else "-"


def _accuracies(cells: Cells) -> str:
    """Write mean test accuracy of what each arm ships, by set and number of images."""
    parts: dict[tuple[str, str], list[Mapping[CellArm, Cell]]] = defaultdict(list)
    for task in sorted(cells, key=_place):
        parts[task[0], task[1]].append(cells[task])
    rows = [[name, level, *_shipped(some)] for (name, level), some in parts.items()]
    told = (
        "Test accuracy of what ships, %; in parentheses that of the arm's own model where it "
        "differs, as it was before val could prefer the frozen head."
    )
    return f"{told}\n\n{table(['set', 'images a class', *ARMS], rows)}"


def _shipped(some: Sequence[Mapping[CellArm, Cell]]) -> Iterator[str]:
    for arm in ARMS:
        found = [arms[arm] for arms in some if arm in arms]
        if not found:
            yield "-"
            continue
        shipped = 100 * sum(cell.shipped_accuracy for cell in found) / len(found)
        own = 100 * sum(cell.test_accuracy for cell in found) / len(found)
        yield f"{shipped:.1f}" + (f" ({own:.1f})" if abs(own - shipped) >= 0.05 else "")


def _confidence(
    cells: Cells,
    said: Sequence[Said],
    strategies: Mapping[str, Mapping[Task, Choice]],
    deciders: Sequence[str],
) -> str:
    """Write how often a decision was right, by the confidence that it stated."""
    rows = []
    for name in deciders:
        stated = {one.task: one.confidence for one in said if one.decider == name}
        outcomes = judge_all(cells, strategies[name])
        for level in ("high", "medium", "low"):
            found = [one for one in outcomes if stated[one.task] == level]
            means = [sum(value(one) for one in found) / max(1, len(found)) for value in REGRETS]
            told = [f"{mean:.1f}" if found else "-" for mean in means]
            rows.append([name, level, str(len(found)), str(count_right(found)), *told])
    told = f"A choice is right where its regret by halves is at most {RIGHT:g} point."
    head = ["rules", "confidence", "tasks", "right", "mean regret, points", "by halves"]
    return f"{told}\n\n{table(head, rows)}"


def count_right(outcomes: Sequence[Outcome]) -> int:
    """Count choices that were right."""
    return sum(one.unbiased <= RIGHT for one in outcomes)


def _lost(cells: Cells) -> str:
    """Write the time of the arms, and what of it went into phases that were rolled back."""
    rows = []
    for arm in (*NEEDED[1:], "other"):
        found = [arms[arm] for arms in cells.values() if arm in arms]
        if not found:
            continue
        phases = [phase for cell in found for phase in cell.phases.split()]
        lost = sum(":lost:" in phase for phase in phases)
        seconds = sum(cell.seconds for cell in found)
        share = sum(cell.lost_seconds for cell in found) / seconds if seconds else 0.0
        rows.append(
            [arm, f"{seconds / len(found):.0f}", f"{lost} of {len(phases)}", f"{share:.0%}"]
        )
    return table(["arm", "seconds a task", "phases rolled back", "of the seconds"], rows)


def _losses(cells: Cells, said: Sequence[Said], decider: str) -> str:
    """Write the tasks on which a decider lost most, and what the loss came of."""
    by_task = {one.task: one for one in said if one.decider == decider}
    outcomes = judge_all(cells, follow(cells, said, decider))
    worst = sorted(outcomes, key=lambda one: -one.regret)[:WORST]
    rows = []
    for one in (one for one in worst if one.regret > RIGHT):
        knew, arms = by_task[one.task], cells[one.task]
        best = max(arms.values(), key=lambda cell: cell.shipped_accuracy)
        rows.append(
            [
                *(str(part) for part in one.task[:3]),
                f"{knew.arm}, {100 * arms[knew.arm].shipped_accuracy:.1f}",
                f"{best.arm}, {100 * best.shipped_accuracy:.1f}",
                f"{one.regret:.1f}",
                f"{one.unbiased:.1f}",
                "-" if knew.mmd is None else f"{knew.mmd:.3f}",
                f"{knew.gain:.2f}",
                explain_loss(arms, knew.arm, one),
            ]
        )
    head = ["set", "images a class", "seed", "chosen, %", "best, %", "regret", "by halves"]
    return f"`{decider}`:\n\n{table([*head, 'MMD²', 'gain', 'because'], rows)}"


def explain_loss(arms: Mapping[CellArm, Cell], chosen: CellArm, outcome: Outcome) -> str:
    """Say what the loss of a choice came of, in words."""
    if outcome.unbiased <= RIGHT:
        return "luck of the best arm: on the other half of the images it is at most a point better"
    cell, frozen = arms[chosen], arms["frozen"]
    best = max(arms.values(), key=lambda one: one.shipped_accuracy)
    regret = best.shipped_accuracy - cell.shipped_accuracy
    misjudged = max(cell.test_accuracy, frozen.test_accuracy) - cell.shipped_accuracy
    if misjudged >= regret / 2 > 0:
        wrong = "frozen head" if cell.shipped == "baseline" else "arm's model"
        return f"val ({cell.val_images} images) shipped the {wrong}, the worse one on test"
    depth = {arm: place for place, arm in enumerate(NEEDED)}
    if best.arm == "scratch":
        return "nothing was worth transferring"
    depth["other"] = depth["most"]
    if best.arm == "other" and chosen == "most":
        return "rates too low" if best.raised else "rates too high"
    return "too shallow" if depth.get(chosen, -1) < depth[best.arm] else "too deep"


def _place(task: Task) -> tuple[str, float, int]:
    level = float(task[1]) if task[1].isdigit() else float("inf")
    return task[0], level, task[2]
