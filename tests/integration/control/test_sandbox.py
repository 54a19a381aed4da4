"""Functions of graders that try to get out, and those that just compute."""

from __future__ import annotations

import os
import textwrap

import pytest

from harmonia.config.control import Graders
from harmonia.errors import InvalidRequestError
from harmonia.server.services.graders.sandbox import Check, Outcome, Sandbox, Validation
from harmonia.threads import StringThread

SAMPLE = StringThread([("user", "Hello"), ("assistant", "Good day")], {"wanted": "Good day"})
PATIENT_S = 30.0
"""More than a busy machine needs for anything that ends."""


def function(body: str) -> str:
    lines = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return f"import ctypes, os, signal, socket, subprocess, sys, threading\nasync def grade(thread):\n{lines}\n"


async def validate(source: str, seconds: float = PATIENT_S) -> Validation:
    return await Sandbox(Graders(seconds=seconds)).validate(source, SAMPLE)


async def failure(source: str, seconds: float = PATIENT_S) -> Check:
    """The only check that failed."""
    found = await validate(source, seconds)
    assert not found.valid
    (failed,) = [check for check in found.checks if not check.passed]
    return failed


async def test_a_function_is_checked_and_run() -> None:
    found = await validate(
        "async def grade(thread: StringThread) -> float:\n    return len(thread.last_content()) / 10"
    )
    assert found.valid
    assert [check.name for check in found.checks] == ["syntax", "definition", "signature", "run", "result"]
    assert all(check.message for check in found.checks)


@pytest.mark.parametrize(
    ("source", "check", "says"),
    [
        ("async def grade(thread:\n", "syntax", "line 1"),
        ("x = " + "(" * 10_000, "syntax", "parenthes"),
        ("grade = 1", "definition", "must define"),
        ("def grade(thread): return 1", "definition", "async"),
        ("import nothing_of_this_name\nasync def grade(t): return 1", "definition", "nothing_of_this_name"),
        ("async def grade(): return 1", "signature", "one argument"),
        ("async def grade(thread, other): return 1", "signature", "'other'"),
        (function("return '1'"), "result", "of type str"),
        (function("return None"), "result", "NoneType"),
        (function("return float('nan')"), "result", "finite"),
        (function("return 1e999"), "result", "finite"),
        (function("return thread.no_such_method()"), "run", "AttributeError"),
        (function("raise ValueError('x' * 10**7)"), "run", "ValueError: xxx"),
        (function("sys.exit(3)"), "run", "SystemExit"),
        (function("raise KeyboardInterrupt"), "run", "KeyboardInterrupt"),
        (function("os._exit(3)"), "run", "status 3"),
        (function("ctypes.string_at(0)"), "run", "SIGSEGV"),
        (function("return bytearray(10**10)"), "run", "MemoryError"),
        (function("x = []\nwhile True: x.append(bytearray(10**7))"), "run", "MemoryError"),
        (function("while True: pass"), "run", "longer than 1 s"),
        (function("import asyncio\nawait asyncio.sleep(60)"), "run", "longer than 1 s"),
        ("while True: pass", "definition", "longer than 1 s"),
    ],
)
async def test_mistakes_are_found(source: str, check: str, says: str) -> None:
    failed = await failure(source, 1 if "longer than 1 s" in says else PATIENT_S)
    assert failed.name == check
    assert says in failed.message


ESCAPES = [
    "socket.create_connection(('127.0.0.1', 80), 1)",
    "socket.socket(socket.AF_UNIX)",
    "socket.socket(socket.AF_INET, socket.SOCK_RAW)",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9000', timeout=1)",
    "open('written', 'w').write('x')",
    "open('/tmp/written', 'w').write('x')",
    "os.mkdir('folder')",
    "os.chmod(os.__file__, 0o777)",
    "os.utime(os.__file__)",
    "os.fork()",
    "subprocess.run(['true'])",
    "os.system('true') == 0 or open('/nowhere')",
    "threading.Thread(target=print).start()",
    "os.kill(os.getppid(), signal.SIGTERM)",
    "os.kill(-1, signal.SIGTERM)",
    "assert ctypes.CDLL(None).syscall(129, os.getppid(), signal.SIGKILL, bytes(128)) == 0, 'refused'",
    "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 10, signal.SIGKILL)",
    "import fcntl\nfcntl.ioctl(6, 0x8901, os.getppid().to_bytes(4, sys.byteorder))",
    "socket.socketpair()",
    "os.memfd_create('beside the limit')",
    "os.chroot('/usr')",
    "os.sched_setaffinity(0, [0])",
    "open(f'/proc/{os.getppid()}/environ').read()",
    "open('/etc/shadow').read()",
    "os.listdir('/')",
    "os.setuid(0)",
    "assert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0, 'refused'",
    "assert ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0) == 0, 'refused'",
]


async def test_nothing_outside_can_be_reached() -> None:
    threads = [StringThread([("assistant", escape)]) for escape in ESCAPES]
    source = function("exec(thread.last_content(), globals())\nreturn 1")
    outcomes = await Sandbox(Graders(seconds=PATIENT_S)).grade("escapes", source, threads)
    for escape, outcome in zip(ESCAPES, outcomes, strict=True):
        assert outcome.score is None, escape
        assert "Error" in str(outcome.error), escape


async def test_a_fork_bomb_leaves_no_process() -> None:
    found = await validate(function("while True:\n    try: os.fork()\n    except OSError: return 1"))
    assert found.valid


async def test_secrets_of_the_server_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVE_APP__SECRET", "s" * 64)
    found = await validate(
        function("assert not [n for n in os.environ if 'ADAPTIVE' in n]\nassert os.listdir('.') is None\nreturn 1")
    )
    assert "AssertionError" not in found.checks[-1].message  # the folder may not even be listed


async def test_output_goes_nowhere_and_forged_answers_are_refused() -> None:
    assert (await validate(function("print('x' * 10**8)\nsys.stderr.write('y' * 10**7)\nreturn 1"))).valid
    flood = function("for fd in range(3, 20):\n    try: os.write(fd, b'x' * 10**7)\n    except OSError: pass\nreturn 1")
    assert not (await validate(flood)).valid
    forged = function("for fd in range(3, 20):\n    try: os.write(fd, b'[1]\\n')\n    except OSError: pass\nreturn 1")
    assert "no answer" in (await failure(forged)).message


WRITES_MORE_THAN_IS_READ = """
for fd in range(3, 20):
    try: [os.write(fd, b'{"score": 2}\\n' * 1000) for _ in range(100)]
    except OSError: pass
return 1
"""
CLOSES_ITS_OUTPUT = "os.closerange(3, 20)\nimport time\ntime.sleep(600)"


async def test_a_function_that_is_never_done_writing_or_never_writes_comes_to_an_end() -> None:
    assert (await validate(function(WRITES_MORE_THAN_IS_READ))).valid, "it forged only its own score"
    assert "closed its output" in (await failure(function(CLOSES_ITS_OUTPUT))).message


async def test_replacing_parts_of_python_changes_nothing_outside() -> None:
    source = "import json, os\njson.dumps = os.write = os.dup = None\nasync def grade(thread): return 0.5"
    assert (await validate(source)).valid
    assert (await validate(function("return 1"))).valid


async def test_usual_modules_can_be_used() -> None:
    source = "import re, json, math, statistics, difflib, datetime, collections\nimport numpy as np\n" + function(
        "assert thread.metadata['wanted'] == thread.last_content()\nreturn np.ones(3).sum()"
    )
    assert (await validate(source)).valid


async def test_many_are_graded_in_one_process_in_order() -> None:
    threads = [StringThread([("user", "?"), ("assistant", "x" * size)]) for size in range(300)]
    outcomes = await Sandbox(Graders()).grade("length", function("return len(thread.last_content())"), threads)
    assert outcomes == [Outcome(score=float(size)) for size in range(300)]


async def test_one_that_fails_takes_no_other_with_it() -> None:
    threads = [StringThread([("assistant", text)]) for text in ("a", "exit", "b", "raise", "skip", "hang", "c")]
    source = function(
        """
        match thread.last_content():
            case "exit": os._exit(1)
            case "raise": raise ValueError("no")
            case "skip": raise IgnoreGradeException("nothing to say")
            case "hang":
                while True: pass
        return 1
        """
    )
    outcomes = await Sandbox(Graders(seconds=3)).grade("mixed", source, threads)
    assert [outcome.score for outcome in outcomes] == [1, None, 1, None, None, None, 1]
    assert [outcome.ignored for outcome in outcomes] == [False] * 4 + [True] + [False] * 2
    assert [outcome.error for outcome in outcomes if outcome.error] == [
        "its process ended by itself, with status 1",
        "ValueError: no",
        "nothing to say",
        "it took longer than 3 s",
    ]


async def test_a_source_that_defines_nothing_is_refused_at_once() -> None:
    for source in ("grade = 1", "while True: pass"):
        with pytest.raises(InvalidRequestError, match="'broken'"):
            await Sandbox(Graders(seconds=0.5)).grade("broken", source, [SAMPLE] * 100)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_root_becomes_nobody() -> None:
    found = await validate(function("raise ValueError(f'{os.getuid()} {os.getgroups()}')"))
    assert "65534 []" in found.checks[-1].message
    assert found.warnings == ()
