"""The tags of models: GTO reads them as we do, going back goes back, a remote has all or none."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import tells
from gto import api as gto
from gto.tag import parse_name

from flows.errors import PromotionError
from flows.stages.in_use import LINK, folder_of, remove_other_models, use_model
from flows.stages.registry import (
    Decision,
    Promotion,
    Registry,
    fetch_tags,
    now,
    read_registry,
    write_tags,
)


class Repository:
    """A git repository of empty commits."""

    def __init__(self, root: Path, commits: int = 4) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "Ada")
        self.git("config", "user.email", "ada@localhost")
        self.commits = [self.commit(f"Commit {number}") for number in range(commits)]

    def commit(self, message: str) -> str:
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=self.root, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def use(self, number: int, decision: Decision = "better", remote: str | None = None) -> str:
        return write_tags(self.root, self.commits[number], promotion(decision), remote)

    def back(self) -> None:
        *_, before, _ = self.registry.line
        write_tags(self.root, before.commit, promotion("back"), None)

    @property
    def registry(self) -> Registry:
        return read_registry(self.root)

    @property
    def line(self) -> list[int]:
        return [self.commits.index(one.commit) for one in self.registry.line]

    @property
    def in_use_by_gto(self) -> int:
        """The commit whose version GTO shows for the stage."""
        (shown,) = gto.show(str(self.root), "classifier#prod")
        return self.commits.index(shown["commit_hexsha"])

    @property
    def tags(self) -> list[str]:
        return self.git("tag", "--list").split()


def promotion(decision: Decision = "better") -> Promotion:
    return Promotion(
        decision=decision, candidate="owl", by="Ada", why='"\n\0\x01', date=now(), figures=None
    )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "here")


def test_a_repository_without_tags_has_no_model_in_use(repository: Repository) -> None:
    assert repository.registry.in_use is None
    assert repository.registry.name(repository.commits[0]) == "classifier@v1.0.0"


def test_a_model_in_use_is_a_version_and_a_stage_with_its_record(repository: Repository) -> None:
    assert repository.use(2) == "classifier@v1.0.0"
    assert repository.tags == ["classifier#prod#1", "classifier@v1.0.0"]
    (known,) = repository.registry.line
    assert (known.commit, known.number) == (repository.commits[2], 1)
    assert known.promotion is not None
    assert known.promotion.why == '"\n\0\x01'
    shown = repository.git("for-each-ref", "--format=%(objecttype) %(taggername)", "refs/tags/")
    assert shown.splitlines() == ["tag Ada"] * 2


@pytest.mark.parametrize(
    "steps", ["012b", "012bb", "012bb3", "012b3bb", "010b", "01b1b", "0123bbb"]
)
def test_going_back_is_a_stack_and_gto_agrees_on_what_is_in_use(
    repository: Repository, steps: str
) -> None:
    stack: list[int] = []
    for number, step in enumerate(steps, 1):
        if step == "b":
            stack.pop()
            repository.back()
        else:
            stack.append(int(step))
            repository.use(int(step))
        assert repository.line == stack
        assert repository.in_use_by_gto == stack[-1]
        assert f"classifier#prod#{number}" in repository.tags
    versions = {tag for tag in repository.tags if "@" in tag}
    assert len(versions) == len({*steps} - {"b"})
    assert all(parse_name(tag, raise_on_fail=False) for tag in repository.tags)


def test_tags_of_gto_itself_count_and_others_do_not(repository: Repository) -> None:
    repository.use(0)
    gto.assign(str(repository.root), "classifier", "prod", ref=repository.commits[1])
    gto.assign(str(repository.root), "classifier", "dev", ref=repository.commits[2])
    for name in ("classifier#prod#9", "classifiers#prod#12", "classifier@v7.0.0", "v1"):
        repository.git("tag", name, repository.commits[3])
    assert repository.line == [0, 1]
    assert repository.use(3) == "classifier@v2.0.0"  # GTO counts in the last place
    assert repository.tags[-1] == "v1"
    assert "classifier#prod#4" in repository.tags


@pytest.mark.parametrize("name", ["classifier@v2.0.0", "classifier#prod#2"])
def test_a_tag_without_annotation_that_has_the_next_name_is_told(
    name: str, repository: Repository
) -> None:
    repository.use(0)
    repository.git("tag", name, repository.commits[3])
    before = repository.tags
    with pytest.raises(PromotionError, match=f"the tag {name} is there.*git tag --delete '{name}'"):
        repository.use(1)
    assert (repository.tags, repository.line) == (before, [0])
    repository.git("tag", "--delete", name)
    assert repository.use(1) == "classifier@v2.0.0"


def test_what_leads_nowhere_in_the_line_is_taken_as_it_is(repository: Repository) -> None:
    repository.use(0)
    repository.use(1, "back")
    assert repository.line == [1]


# a remote ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(repository: Repository, tmp_path: Path) -> Path:
    repository.git("clone", "--quiet", "--bare", str(repository.root), str(tmp_path / "hub"))
    return tmp_path / "hub"


def tags_of(hub: Path) -> list[str]:
    command = ["git", "tag", "--list"]
    return subprocess.check_output(command, cwd=hub, text=True).split()


def test_the_remote_has_the_tags_also_those_that_were_made_without_it(
    repository: Repository, hub: Path
) -> None:
    repository.use(0)
    repository.use(1, remote=str(hub))
    assert tags_of(hub) == repository.tags
    assert len(repository.tags) == 4


def test_what_the_remote_refuses_is_nowhere(repository: Repository, hub: Path) -> None:
    repository.use(0, remote=str(hub))
    before = repository.tags
    hook = hub / "hooks/update"
    hook.write_text('#!/bin/sh\ncase "$1" in *prod*) echo "prod is closed"; exit 1;; esac\n')
    hook.chmod(0o755)
    with pytest.raises(PromotionError) as error:
        repository.use(1, remote=str(hub))
    assert tells(str(error.value), str(hub), "nothing changed here", "prod is closed")
    assert tags_of(hub) == repository.tags == before


def test_who_comes_second_is_refused_and_learns_what_is_in_use(
    repository: Repository, hub: Path, tmp_path: Path
) -> None:
    other = Repository(tmp_path / "other", 0)
    other.git("fetch", "--quiet", str(hub), "main")
    other.commits = repository.commits
    repository.use(0, remote=str(hub))
    with pytest.raises(PromotionError, match="run it again"):
        other.use(1, remote=str(hub))
    assert other.tags == []
    fetch_tags(other.root, str(hub))
    assert other.line == [0]
    assert other.use(1, remote=str(hub)) == "classifier@v2.0.0"


def test_a_remote_that_is_not_there_is_told_and_its_name_is_no_option(
    repository: Repository, tmp_path: Path
) -> None:
    for remote in ("nowhere", f"--upload-pack=touch {tmp_path / 'bad'}"):
        with pytest.raises(PromotionError, match="nothing changed"):
            fetch_tags(repository.root, remote)
        with pytest.raises(PromotionError, match="nothing changed"):
            repository.use(0, remote=remote)
    assert not (tmp_path / "bad").exists()
    assert os.listdir(tmp_path) == ["here"]


def test_the_folder_that_the_link_leads_to_is_never_removed(tmp_path: Path) -> None:
    commits = [digit * 40 for digit in "abc"]
    for commit in commits:
        folder_of(tmp_path, commit).mkdir(parents=True)
    use_model(tmp_path, commits[0])
    remove_other_models(tmp_path, [commits[1]])
    left = {folder.name for folder in (tmp_path / LINK).parent.iterdir()}
    assert left == {LINK.name, commits[0][:12], commits[1][:12]}
    assert (tmp_path / LINK).resolve() == folder_of(tmp_path, commits[0]).resolve()
