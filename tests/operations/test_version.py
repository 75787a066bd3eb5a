"""The line that ``--version`` prints, from a file and from git."""

from __future__ import annotations

import subprocess

from operations.version import commit_of, installed_commit, version, version_line


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def repository(folder) -> str:
    """Make one with a commit and a tag; its name."""
    git(folder, "init", "-q")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "One")
    git(folder, "tag", "-a", "v9", "-m", "a tag is no commit")
    return git(folder, "rev-parse", "--short=12", "HEAD")


def test_what_was_written_at_build_time_comes_first(tmp_path):
    repository(tmp_path)
    (tmp_path / "operations").mkdir()
    file = tmp_path / "operations" / "commit.txt"
    file.write_text("0123456789ab\n")

    assert installed_commit(file) == "0123456789ab"


def test_a_checkout_is_asked_each_time(tmp_path, monkeypatch):
    commit = repository(tmp_path)
    assert installed_commit(tmp_path / "operations" / "commit.txt") == commit

    (tmp_path / "file").write_text("two")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert commit_of(tmp_path) == f"{commit}-dirty"


def test_without_git_or_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    repository(tmp_path)
    (tmp_path / "below").mkdir()
    assert commit_of(tmp_path / "below") == ""

    monkeypatch.setenv("PATH", "/nonexistent")
    assert commit_of(tmp_path) == ""


def test_the_line_has_program_version_and_perhaps_the_commit(monkeypatch):
    monkeypatch.setattr("operations.version.installed_commit", lambda: "")
    assert version_line("kas") == f"kas {version()}"

    monkeypatch.setattr("operations.version.installed_commit", lambda: "0123456789ab")
    assert version_line("kas") == f"kas {version()} (commit 0123456789ab)"
