"""Watched files: every way in which files are replaced is seen, and what cannot be used changes nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio

from operations.watched_files import FileProblem, WatchedFiles


class Subject:
    """What a program keeps of a watched file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = ""
        self.taken_over = 0
        self.versions: list[str] = []

    def load(self) -> str:
        text = self.path.read_text()
        if "broken" in text:
            raise ValueError("line 1 is broken")
        if "bug" in text:
            raise TypeError("a bug in the parser")
        return text

    def apply(self, text: str) -> None:
        self.content = text
        self.versions.append(text)
        self.taken_over += 1


@pytest.fixture
def subject(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    return Subject(path)


async def until(condition) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - real files change in real time
            await trio.sleep(0.01)


@pytest.fixture
async def files(nursery):
    watched = WatchedFiles(interval_seconds=0.02)
    await nursery.start(watched.run)
    return watched


async def test_the_first_version_is_loaded_at_once(files, subject):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)

    assert subject.content == "one"


def test_the_first_version_must_be_usable(tmp_path):
    files = WatchedFiles()
    subject = Subject(tmp_path / "missing")
    with pytest.raises(FileProblem, match="missing is missing"):
        files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    subject.path.write_text("")
    with pytest.raises(FileProblem, match="is empty"):
        files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    subject.path.write_text("broken")
    with pytest.raises(ValueError, match="line 1"):
        files.watch("test file", subject.path, load=subject.load, apply=subject.apply)


async def test_a_file_that_is_written_in_place_is_taken_over(files, subject):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)

    subject.path.write_text("three")

    await until(lambda: subject.content == "three")


async def test_a_file_of_the_same_size_and_time_is_seen_when_it_is_another_file(files, subject):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    times = subject.path.stat()

    other = subject.path.with_name("other")
    other.write_text("two")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(subject.path)

    await until(lambda: subject.content == "two")


async def test_a_symlink_two_folders_up_is_followed(files, tmp_path):
    # This is how Kubernetes replaces mounted Secrets: ..data points to a new folder.
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "token").write_text(f"version {version}")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "token").symlink_to("..data/token")
    subject = Subject(tmp_path / "token")
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)

    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(tmp_path / "..data")

    await until(lambda: subject.content == "version 2")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.write_text("broken"), "line 1 is broken"),
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir(), (path / "x").write_text("")), "Is a directory"),
    ],
)
async def test_what_cannot_be_used_leaves_the_old_version_and_is_logged_once(files, subject, caplog, spoil, problem):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)

    spoil(subject.path)
    await until(lambda: caplog.records)
    await trio.sleep(0.3)

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert problem in record.problems[0]
    assert (subject.content, subject.taken_over) == ("one", 1)


async def test_a_file_that_is_mended_is_taken_over(files, subject, caplog):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    subject.path.write_text("broken")
    await until(lambda: caplog.records)

    subject.path.write_text("four")

    await until(lambda: subject.content == "four")


async def test_a_bug_in_a_parser_is_logged_and_ends_no_watching(files, subject, caplog):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    subject.path.write_text("bug")
    await until(lambda: caplog.records)
    assert caplog.records[0].exc_info is not None

    subject.path.write_text("five")

    await until(lambda: subject.content == "five")


async def test_a_file_that_is_still_being_written_is_not_taken_over_half(files, subject):
    files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    with subject.path.open("w") as file:
        for part in ("first half, ", "second half"):
            file.write(part)
            file.flush()
            await trio.sleep(0.1)

    await until(lambda: subject.content.endswith("second half"))
    assert subject.versions == ["one", "first half, second half"]


async def test_a_group_of_files_is_loaded_as_one(files, tmp_path):
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    for path in (certificate, key):
        path.write_text("1")
    seen: list[str] = []
    files.watch(
        "certificate", [certificate, key], load=lambda: certificate.read_text() + key.read_text(), apply=seen.append
    )

    key.write_text("22")

    await until(lambda: seen == ["11", "122"])


async def test_watching_can_be_ended(files, subject):
    forget = files.watch("test file", subject.path, load=subject.load, apply=subject.apply)
    forget()
    forget()

    subject.path.write_text("seven")
    await trio.sleep(0.4)

    assert subject.content == "one"
