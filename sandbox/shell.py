"""A harmless shell: a few commands that run nothing, and files that are not there (``shell.yaml``)."""

from __future__ import annotations

import shlex

import trio

from sandbox.console import Console
from sandbox.discovery import VERSION
from sandbox.documents import packaged
from sandbox.kinds import Object
from sandbox.store import Now

_OPERATORS = (";", "&&", "||")
_ANSWERS: dict[str, str] = packaged("shell.yaml")["answers"]


class CommandError(Exception):
    """A command failed; the argument is what it says, and its exit code comes with it."""

    def __init__(self, problem: str, code: int = 1) -> None:
        super().__init__(problem)
        self.code = code


class ShellExit(CommandError):
    """``exit`` was called."""


def is_shell(command: str) -> bool:
    """Whether a command is a shell."""
    return command.rpartition("/")[2] in ("sh", "bash", "ash")


def knows(command: str) -> bool:
    """Whether there is such a command here."""
    name = command.rpartition("/")[2]
    return is_shell(command) or name in _ANSWERS or hasattr(Shell, f"_do_{name}")


class Shell:
    """Commands in one container of a pod."""

    def __init__(self, pod: Object, container: Object, console: Console, now: Now) -> None:
        self._console = console
        self._now = now
        self._status = 0
        command = [*(container.get("command") or []), *(container.get("args") or [])]
        self._facts = {
            "HOSTNAME": pod["metadata"]["name"],
            "NAMESPACE": pod["metadata"]["namespace"],
            "ADDRESS": (pod.get("status") or {}).get("podIP", ""),
            "COMMAND": " ".join(command) or container["image"],
            "VERSION": VERSION,
        }
        self._files = self._filled("files")
        given = {item["name"]: str(item.get("value", "")) for item in container.get("env") or []}
        self._environment = self._filled("environment") | given

    def _filled(self, part: str) -> dict[str, str]:
        return {name: text.format(**self._facts) for name, text in packaged("shell.yaml")[part].items()}

    async def run(self, arguments: list[str]) -> int:
        """Run a command, or a shell where it names one, and return its exit code."""
        try:
            if not is_shell(arguments[0]):
                self._status = await self._command(arguments)
            elif len(arguments) > 2 and arguments[1].startswith("-") and arguments[1].endswith("c"):
                await self._line(arguments[2])
            else:
                await self._interact()
        except ShellExit as ended:
            self._status = ended.code
        return self._status

    async def _interact(self) -> None:
        console = self._console
        while True:
            if console.is_terminal:
                await console.write("sandbox:/# ")
            if not (text := await console.read_line()):
                return
            with trio.CancelScope() as console.running:
                await self._line(text.decode(errors="replace"))
            if console.running.cancelled_caught:
                self._status = 130
            console.running = None

    async def _line(self, text: str) -> None:
        """A line of commands with ``;``, ``&&`` and ``||`` between them."""
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        arguments: list[str] = []
        is_skipped = False
        try:
            for word in [*lexer, ";"]:
                if word in _OPERATORS:
                    if arguments and not is_skipped:
                        self._status = await self._command(arguments)
                    is_skipped = {";": False, "&&": self._status != 0, "||": self._status == 0}[word]
                    arguments = []
                elif word and not word.strip(";&|<>()"):
                    raise ValueError(f"{word}: the shell of the sandbox cannot do this")
                else:
                    arguments.append(self._expanded(word))
        except ValueError as error:
            self._status = 2
            await self._console.write_error(f"sh: {error}\n")

    def _expanded(self, word: str) -> str:
        for name, value in {"?": str(self._status), **self._environment}.items():
            word = word.replace(f"${{{name}}}", value).replace(f"${name}", value)
        return word

    async def _command(self, arguments: list[str]) -> int:
        """Run one command and return its exit code."""
        name = arguments[0].rpartition("/")[2]
        if is_shell(name):
            return await self.run(arguments)
        await trio.lowlevel.checkpoint()
        if name in _ANSWERS:
            await self._console.write(_ANSWERS[name].format(**self._facts))
            return 0
        if (command := getattr(self, f"_do_{name}", None)) is None:
            await self._console.write_error(f"sh: {arguments[0]}: not found; this is the sandbox, try help\n")
            return 127
        try:
            await command(arguments[1:])
        except ShellExit:
            raise
        except CommandError as error:
            await self._console.write_error(f"{name}: {error}\n" if str(error) else "")
            return error.code
        return 0

    async def _do_cat(self, arguments: list[str]) -> None:
        while not arguments and (line := await self._console.read_line()):
            await self._console.write(line.decode(errors="replace"))
        for path in arguments:
            if (text := self._files.get("/" + path.lstrip("/"))) is None:
                raise CommandError(f"{path}: No such file or directory")
            await self._console.write(text)

    async def _do_date(self, _: list[str]) -> None:
        await self._console.write(f"{self._now():%a %b %e %H:%M:%S UTC %Y}\n")

    async def _do_echo(self, arguments: list[str]) -> None:
        end = "" if arguments[:1] == ["-n"] else "\n"
        await self._console.write(" ".join(arguments if end else arguments[1:]) + end)

    async def _do_env(self, _: list[str]) -> None:
        await self._console.write("".join(f"{name}={value}\n" for name, value in self._environment.items()))

    async def _do_exit(self, arguments: list[str]) -> None:
        raise ShellExit("", int(arguments[0]) % 256 if arguments and arguments[0].isdecimal() else self._status)

    async def _do_false(self, _: list[str]) -> None:
        raise CommandError("")

    async def _do_ls(self, arguments: list[str]) -> None:
        directory = next((item for item in arguments if not item.startswith("-")), "/").rstrip("/") + "/"
        names = {path.removeprefix(directory).partition("/")[0] for path in self._files if path.startswith(directory)}
        if not names:
            raise CommandError(f"{directory.rstrip('/')}: No such file or directory")
        await self._console.write("".join(f"{name}\n" for name in sorted(names)))

    async def _do_sleep(self, arguments: list[str]) -> None:
        if not arguments or not arguments[0].isdecimal():
            raise CommandError("how many seconds?")
        await trio.sleep(float(arguments[0]))
