"""What a run would do, told before it: which stages, why, about how long."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.durations import in_time, last_seconds
from flows.stages.graph import GUARD, Stage, all_upstream, choose_stages, is_remembered, read_state
from tasks.artifacts.words import listed, plural

SHOWN_REASONS = 4
NOT_KNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage that would run, or that runs where the results of one before it come out otherwise.

    Attributes:
        stage: Its name.
        why: What changed; nothing where only stages before it run.
        after: The last of the stages before it that run; None where none does.
        remembered: Whether DVC ran it so before, and brings the results back.
        seconds: Of its last run on this machine; None where there was none.
    """

    stage: str
    why: Sequence[str]
    after: str | None
    remembered: bool
    seconds: float | None


def plan_run(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Tell what `dvc repro` would do with some stages, a line each; all where none is named.

    Raises:
        GraphError: A name is no stage, or the project cannot be read.
        ParamsError: params.yaml is at fault.
    """
    graph, stale = read_state(root)
    chosen = choose_stages(graph, names)
    needed = {one.name for one in chosen}.union(*(all_upstream(graph, one.name) for one in chosen))
    return say_plan(list(_plan(root, graph, stale, needed)), len(needed))


def _plan(
    root: Path, graph: Sequence[Stage], stale: Mapping[str, list[str]], needed: Collection[str]
) -> Iterator[Planned]:
    planned: list[str] = []
    for name in [stage.name for stage in graph if stage.name in needed]:
        earlier = set(all_upstream(graph, name)) - {GUARD}
        after = next((other for other in reversed(planned) if other in earlier), None)
        if stale[name] or after:
            planned.append(name)
            remembered = not after and is_remembered(root, name)
            yield Planned(name, stale[name], after, remembered, last_seconds(root, name))


def say_plan(planned: Sequence[Planned], stages: int) -> Iterator[str]:
    """Write the plan for people.

    Args:
        planned: The stages that would run.
        stages: How many were looked at.
    """
    if not planned:
        yield f"nothing to run: {plural(stages, 'stage')} unchanged"
        return
    width = max(len(one.stage) for one in planned)
    for one in planned:
        yield f"{one.stage:{width}}  {_about(one):>10}  {_reason(one)}"
    sure = [one for one in planned if one.why]
    following = [one for one in planned if not one.why]
    words = f"{len(sure)} of {plural(stages, 'stage')} would run{_in_all(sure)}"
    if following:
        words += f"; {len(following)} more if results before them change{_in_all(following)}"
    yield words


def _about(one: Planned) -> str:
    if one.remembered:
        return "from cache"
    return NOT_KNOWN if one.seconds is None else in_time(one.seconds)


def _reason(one: Planned) -> str:
    if one.why:
        return listed(one.why, SHOWN_REASONS)
    return f"if the results of {one.after} change"


def _in_all(several: Sequence[Planned]) -> str:
    times = [one.seconds for one in several if not one.remembered]
    known = [seconds for seconds in times if seconds is not None]
    words = f", about {in_time(sum(known))}" if known else ""
    unknown = len(times) - len(known)
    return words + (f", {unknown} of unknown time" if unknown else "")
