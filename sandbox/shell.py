"""A harmless shell: a few commands that run nothing, and files that are not there."""

from __future__ import annotations

import shlex

import trio

from sandbox.console import Console
from sandbox.discovery import VERSION
from sandbox.kinds import Object
from sandbox.store import Now

SHELLS = ("sh", "bash", "ash")
HELP = """\
This is the shell of the Moorline sandbox. Nothing in it is real. It knows:
  cat [FILE...]  date  echo [-n] TEXT...  env  exit [N]  false  help  hostname  ls [DIR]  ps  pwd
  seq [FIRST] LAST  sleep SECONDS  sh -c TEXT  stty size  true  uname  whoami
and ; && || between commands, $NAME and $? in them.
"""
OUTPUT_CHUNK = 16_384
_ANSWERS = {"hostname": ("{HOSTNAME}\n", 0), "pwd": ("/\n", 0), "whoami": ("root\n", 0), "uname": ("Sandbox\n", 0)}
_ANSWERS |= {"true": ("", 0), "false": ("", 1), "help": (HELP, 0)}


class ShellExit(Exception):
    """``exit`` was called; the argument is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def knows(command: str) -> bool:
    """Whether there is such a command here."""
    name = command.rpartition("/")[2]
    return name in SHELLS or name in _ANSWERS or hasattr(Shell, f"_do_{name}")


class Shell:
    """Commands in one container of a pod."""

    def __init__(self, pod: Object, container: Object, console: Console, now: Now) -> None:
        self._console = console
        self._now = now
        self._status = 0
        metadata = pod["metadata"]
        given = {item["name"]: str(item.get("value", "")) for item in container.get("env") or []}
        self._environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOSTNAME": metadata["name"],
            "HOME": "/root",
            "KUBERNETES_SERVICE_HOST": "10.96.0.1",
            "KUBERNETES_SERVICE_PORT": "443",
        } | given
        release = f'NAME="Moorline sandbox"\nID=sandbox\nVERSION_ID={VERSION}\n'
        self._files = {
            "/etc/hostname": f"{metadata['name']}\n",
            "/etc/hosts": f"127.0.0.1 localhost\n{(pod.get('status') or {}).get('podIP', '')} {metadata['name']}\n",
            "/etc/os-release": release,
            "/etc/resolv.conf": f"nameserver 10.96.0.10\nsearch {metadata['namespace']}.svc.cluster.local\n",
            "/README": "This is a make-believe container in the Moorline sandbox. Type help.\n",
            "/run/secrets/kubernetes.io/serviceaccount/namespace": metadata["namespace"],
        }
        self._processes = [
            " ".join((container.get("command") or []) + (container.get("args") or [])) or container["image"]
        ]

    async def run(self, arguments: list[str]) -> int:
        """Run a command, or a shell where it names one, and return its exit code."""
        name = arguments[0].rpartition("/")[2]
        try:
            if name not in SHELLS:
                return await self._command(arguments)
            if len(arguments) > 2 and arguments[1] in ("-c", "-ec", "-lc"):
                return await self._line(arguments[2])
            return await self._interact()
        except ShellExit as ended:
            return ended.code

    async def _interact(self) -> int:
        console = self._console
        self._processes.append("sh")
        while True:
            if console.is_terminal:
                await console.write("sandbox:/# ")
            text = await console.read_line()
            if not text:
                return self._status
            with trio.CancelScope() as console.running:
                await self._line(text.decode(errors="replace"))
            if console.running.cancelled_caught:
                self._status = 130
            console.running = None

    async def _line(self, text: str) -> int:
        """A line of commands with ``;``, ``&&`` and ``||`` between them."""
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError as error:
            return await self._fail("sh", f"syntax error: {error}", 2)
        arguments: list[str] = []
        is_skipped = False
        for word in [*words, ";"]:
            if word not in (";", "&&", "||"):
                if word and all(character in ";&|<>()" for character in word):
                    return await self._fail("sh", f"{word}: the shell of the sandbox cannot do this", 2)
                arguments.append(self._expanded(word))
                continue
            if arguments and not is_skipped:
                self._status = await self._command(arguments)
            is_skipped = {";": False, "&&": self._status != 0, "||": self._status == 0}[word]
            arguments = []
        return self._status

    def _expanded(self, word: str) -> str:
        for name, value in {"?": str(self._status), **self._environment}.items():
            word = word.replace(f"${{{name}}}", value).replace(f"${name}", value)
        return word

    async def _command(self, arguments: list[str]) -> int:
        name = arguments[0].rpartition("/")[2]
        if name in SHELLS:
            return await Shell.run(self, arguments)
        command = getattr(self, f"_do_{name}", None)
        if name in _ANSWERS:
            text, status = _ANSWERS[name]
            await self._console.write(text.format(**self._environment))
            return status
        if command is None:
            return await self._fail("sh", f"{arguments[0]}: not found; this is the sandbox, try help", 127)
        await trio.lowlevel.checkpoint()
        outcome: int | None = await command(arguments[1:])
        return outcome or 0

    async def _fail(self, name: str, problem: str, code: int = 1) -> int:
        await self._console.write_error(f"{name}: {problem}\n")
        self._status = code
        return code

    async def _do_echo(self, arguments: list[str]) -> None:
        end = "" if arguments[:1] == ["-n"] else "\n"
        await self._console.write(" ".join(arguments if end else arguments[1:]) + end)

    async def _do_ls(self, arguments: list[str]) -> int | None:
        directory = next((item for item in arguments if not item.startswith("-")), "/").rstrip("/") + "/"
        names = {path.removeprefix(directory).partition("/")[0] for path in self._files if path.startswith(directory)}
        if not names:
            return await self._fail("ls", f"{directory.rstrip('/')}: No such file or directory")
        await self._console.write("".join(f"{name}\n" for name in sorted(names)))
        return None

    async def _do_cat(self, arguments: list[str]) -> int | None:
        if not arguments:
            while line := await self._console.read_line():
                await self._console.write(line.decode(errors="replace"))
        for path in arguments:
            text = self._files.get("/" + path.lstrip("/"))
            if text is None:
                return await self._fail("cat", f"{path}: No such file or directory")
            await self._console.write(text)
        return None

    async def _do_env(self, _: list[str]) -> None:
        await self._console.write("".join(f"{name}={value}\n" for name, value in self._environment.items()))

    async def _do_ps(self, _: list[str]) -> None:
        processes = [*self._processes, "ps"]
        await self._console.write("PID   USER     COMMAND\n")
        await self._console.write("".join(f"{pid:5} root     {name}\n" for pid, name in enumerate(processes, 1)))

    async def _do_exit(self, arguments: list[str]) -> None:
        raise ShellExit(int(arguments[0]) % 256 if arguments and arguments[0].isdecimal() else self._status)

    async def _do_date(self, _: list[str]) -> None:
        await self._console.write(f"{self._now():%a %b %e %H:%M:%S UTC %Y}\n")

    async def _do_stty(self, arguments: list[str]) -> int | None:
        if not self._console.is_terminal or arguments != ["size"]:
            return await self._fail("stty", "there is only `stty size`, on a terminal")
        columns, rows = self._console.size
        await self._console.write(f"{rows} {columns}\n")
        return None

    async def _do_sleep(self, arguments: list[str]) -> int | None:
        try:
            seconds = float("".join(arguments).rstrip("s"))
        except ValueError:
            return await self._fail("sleep", "how many seconds?")
        await trio.sleep(max(0.0, seconds))
        return None

    async def _do_seq(self, arguments: list[str]) -> int | None:
        if not arguments or not all(item.isdecimal() for item in arguments):
            return await self._fail("seq", "how far?")
        first = int(arguments[0]) if len(arguments) > 1 else 1
        for begin in range(first, int(arguments[-1]) + 1, OUTPUT_CHUNK):
            end = min(begin + OUTPUT_CHUNK, int(arguments[-1]) + 1)
            await self._console.write("".join(f"{number}\n" for number in range(begin, end)))
        return None
