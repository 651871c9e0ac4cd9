"""Git as the flows need it: a command to its end, what it printed, one message where it refuses."""

import os
import subprocess
from pathlib import Path

from flows.errors import GitError

REMOTE = "REGRAFT_GIT_REMOTE"  # where set, results go to it and to the DVC remote
AUTHOR = {
    f"GIT_{role}_{fact}": value
    for role in ("AUTHOR", "COMMITTER")
    for fact, value in (("NAME", "Regraft"), ("EMAIL", "regraft@localhost"))
}


def git(folder: Path, *arguments: str, given: str = "") -> str:
    """Run git in a folder and give what it printed.

    Args:
        folder: Where.
        arguments: Its command line; names of users come after `--` or `--end-of-options`.
        given: Its stdin.

    Raises:
        GitError: It refuses; the message is its own.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            check=False,
            cwd=folder,
            input=os.fsencode(given),
            env={**os.environ, **AUTHOR},
            capture_output=True,
        )
    except FileNotFoundError as err:
        raise GitError(f"git {arguments[0]} in {folder} failed: {err}") from err
    if done.returncode:
        said = os.fsdecode(done.stderr).strip()
        raise GitError(f"git {arguments[0]} in {folder} failed: {said}")
    return os.fsdecode(done.stdout)


def try_git(folder: Path, *arguments: str) -> str | None:
    """Run git in a folder and give what it printed; None where it refuses."""
    try:
        return git(folder, *arguments)
    except GitError:
        return None


def user_of(root: Path) -> str:
    """Name who works here as git signs, `Name <address>`; Regraft where git knows nobody."""
    done = subprocess.run(
        ["git", "var", "GIT_COMMITTER_IDENT"], check=False, cwd=root, capture_output=True
    )
    signed = os.fsdecode(done.stdout) if done.returncode == 0 else ""
    return signed.rsplit(" ", 2)[0] or "Regraft <regraft@localhost>"
