"""The flow `promote` on a real Prefect server: by itself, asked with a form, answered or not."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import tells
from owls import in_use, record, use
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from served import eventually
from toy import ToyProject

from flows import promote
from flows.promote import promote_model
from flows.recovery import recover

pytest_plugins = ["toy_fixtures", "owl_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning:dvc"),
]


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    own = {
        PREFECT_HOME: tmp_path_factory.mktemp("prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(own), prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def project(used: ToyProject, monkeypatch: pytest.MonkeyPatch) -> ToyProject:
    monkeypatch.chdir(used.root)
    monkeypatch.setattr(promote, "POLL_SECONDS", 1)
    return used


def paused() -> list[FlowRun]:
    of_type = FlowRunFilterState(type=StateFilter(any_=[StateType.PAUSED]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(state=of_type))


def promote_with(answer: Callable[[FlowRun], None], **parameters: Any) -> State[Any]:
    """Run the flow while somebody does something once it is paused."""

    def wait_and_answer() -> None:
        (run,) = eventually(paused, bool, 60)
        answer(run)

    person = threading.Thread(target=wait_and_answer)
    person.start()
    state = promote_model(**parameters, return_state=True)
    person.join()
    return state


def test_what_is_better_comes_into_use_by_itself_and_back_goes_back(project: ToyProject) -> None:
    state = promote_model("swift-owl", return_state=True)
    assert tells(str(state.message), "classifier@v2.0.0 is in use")
    assert in_use(project) == "swift-owl"
    assert promote_model(back=True, return_state=True).is_completed()
    assert in_use(project) == "first"
    for wrong in ({}, {"candidate": "HEAD", "back": True}, {"candidate": "no-owl"}):
        assert promote_model(**wrong, return_state=True).is_failed()


@pytest.mark.parametrize("approve", ["yes", "no"])
def test_in_doubt_a_person_is_asked_and_decides(project: ToyProject, approve: str) -> None:
    asked: list[str] = []

    def answer(run: FlowRun) -> None:
        with get_client(sync_client=True) as client:
            keys = client.read_flow_run(run.id).state.state_details.run_input_keyset  # type: ignore[union-attr]
            assert keys is not None
            asked.append(str(client.read_flow_run_input(run.id, keys["description"])))
        said = {"approve": approve, "by": "Grace", "why": "looked at all of them"}
        resume_flow_run(run.id, run_input=said)

    state = promote_with(answer, candidate="dull-owl")
    question = asked[0].replace("\\\\", "")
    assert tells(question, "Not better beyond doubt", "50.0 -", "+5.0 points", "24 hours")
    assert "classifier@v1.0.0" in question
    assert "classifier@" not in asked[0]  # which a browser would show as an address to write to
    if approve == "yes":
        assert state.is_completed()
        assert in_use(project) == "dull-owl"
        told = record(project, 2)
        assert (told["by"], told["why"]) == ("Grace", "looked at all of them")
    else:
        assert (state.name, in_use(project)) == ("Cancelled", "first")
        assert tells(str(state.message), "Grace said no", "nothing changed")


def test_one_that_is_worse_is_refused_and_nobody_is_asked(project: ToyProject) -> None:
    state = promote_model("bad-owl", return_state=True)
    assert (state.name, in_use(project)) == ("Refused", "first")
    assert "worse beyond doubt: nothing changed" in str(state.message)


def test_without_an_answer_nothing_changes(
    project: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote, "HOUR_SECONDS", 0)
    state = promote_model("dull-owl", return_state=True)
    assert (state.name, state.message) == (
        "Cancelled",
        "nobody answered within 24 hours; nothing changed",
    )
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.state is not None
    assert (run.state.name, run.state.message) == (state.name, state.message)
    assert in_use(project) == "first"


def test_who_answers_after_another_promotion_is_told(project: ToyProject) -> None:
    def answer(run: FlowRun) -> None:
        use(project, "swift-owl")
        resume_flow_run(run.id, run_input={"approve": "yes", "by": "Grace", "why": "fewer"})

    state = promote_with(answer, candidate="dull-owl")
    assert state.is_failed()
    assert "classifier@v2.0.0 came into use meanwhile" in str(state.message)
    assert in_use(project) == "swift-owl"


def test_a_question_whose_process_died_ends_when_the_server_starts(
    project: ToyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def restart(run: FlowRun) -> None:
        recover(project.root)
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run.id).state
        ended.append(f"{state.name}: {state.message}" if state else "")

    monkeypatch.setattr(promote, "HOUR_SECONDS", 0.25)  # which this process still waits
    promote_with(restart, candidate="dull-owl")
    assert ended[0].startswith("Crashed: the machine or the server stopped")
