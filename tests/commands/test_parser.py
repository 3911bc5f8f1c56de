"""The flags, what the environment says of them, the help, and completion."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from raftsvc import kv
from raftsvc.commands import codes
from raftsvc.commands.parser import build, parse
from raftsvc.kv.environment import start_from_env
from tests.attached.hosts import ROOT
from tests.commands.harness import Shell
from tests.service.harness import PATIENCE


def test_every_flag_has_a_variable_which_the_line_overrides() -> None:
    environ = {"RAFTSVC_TIMEOUT": "3", "RAFTSVC_JSON": "yes", "RAFTSVC_TTL": "7", "RAFTSVC_IF_ABSENT": "1"}
    args = parse(["set", "a", "b"], environ)
    assert (args.timeout, args.json, args.ttl, args.if_absent) == (3.0, True, 7.0, True)
    args = parse(["--timeout", "4", "set", "a", "b", "--no-json", "--ttl", "8", "--no-if-absent"], environ)
    assert (args.timeout, args.json, args.ttl, args.if_absent) == (4.0, False, 8.0, False)
    assert parse(["--timeout", "4", "set", "--timeout", "5", "a", "b"], environ).timeout == 5.0


@pytest.mark.parametrize("variable", ["RAFTSVC_TIMEOUT", "RAFTSVC_JSON", "RAFTSVC_IF_VERSION"])
def test_a_variable_that_makes_no_sense_is_usage(shell: Shell, variable: str) -> None:
    done = shell("set", "a", "b", "--at", "/", **{variable: "sometimes"})
    assert done.code == 2
    assert "sometimes" in done.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["lock", "a", "--", "true"], 125),
        (["elect", "a", "--", "true"], 125),
        (["elect", "a"], 2),
        (["get", "a"], 2),
    ],
)
def test_what_makes_no_sense_has_one_code_wherever_it_is_said(shell: Shell, words: list[str], code: int) -> None:
    for variable in ("RAFTSVC_TIMEOUT", "RAFTSVC_JSON", "RAFTSVC_ONCE"):
        done = shell("--at", "/", *words, **{variable: "sometimes"})
        assert (done.code, done.out) == (code, b"")
        assert "sometimes" in done.err
    for said in (["--timeout", "x"], ["--bogus"]):
        assert shell(*said, *words).code == code
    assert shell(words[0], "--bogus", *words[1:]).code == code


def test_a_node_is_started_beside_variables_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    _, flags = build({})
    environ = {"RAFTSVC_ADDR": "n1.example:8001", "RAFTSVC_DIR": "/nowhere", "RAFTSVC_SECRET": "x" * 16}
    started = []
    monkeypatch.setattr("raftsvc.kv.environment.start", lambda **options: started.append(options))
    monkeypatch.setattr("raftsvc.kv.environment.KeyValue", lambda *arguments: None)
    start_from_env({**environ, **dict.fromkeys({*flags.names, "RAFTSVC_FENCE"}, "1")}, lock_timeout=1.0)
    assert started
    with pytest.raises(ValueError, match="RAFTSVC_TIMEOUTS is no variable"):
        start_from_env({**environ, "RAFTSVC_TIMEOUTS": "1"})
    assert kv.start_from_env is start_from_env


def test_every_command_has_help_with_an_example_and_its_codes(shell: Shell) -> None:
    parser, flags = build({})
    whole = shell("--help")
    assert whole.code == 0
    for name, command in parser.commands.items():
        assert f"    {name} " in whole.out.decode()
        text = shell(name, "--help").out.decode()
        example = text.partition("example:\n")[2].splitlines()[0]
        assert re.search(rf"raftsvc (--at \S+ )?{name}\b", example)
        assert "exit code" in text
        for flag in command.words:
            assert not flag.startswith("--") or f"[RAFTSVC_{flag[2:].upper().replace('-', '_')}]" in text
    assert "RAFTSVC_AT" in flags.names
    assert shell("--version").out.startswith(b"raftsvc ")


def test_the_page_has_every_command_code_and_key() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    parser, flags = build({})
    table = page.partition("## Commands")[2].partition("## Exit codes")[0]
    assert all(re.search(rf"^\| .*`{name}[ `]", table, re.MULTILINE) for name in parser.commands)
    told = {flag for command in parser.commands.values() for flag in command.words if flag.startswith("--")}
    assert {flag for flag in told if not re.search(rf"`[^`]*{flag}\b", page)} == set()
    rows = page.partition("## Exit codes")[2].partition("## Environment")[0]
    assert {code for name, code in vars(codes).items() if name.isupper() and isinstance(code, int)} <= {
        int(number) for number in re.findall(r"\d+", " ".join(re.findall(r"^\| ([\d, +n]+) \|", rows, re.MULTILINE)))
    }
    assert flags.names


def completed_by_bash(shell: Shell, line: str, more: str = ":") -> list[str]:
    script = shell("completion", "bash").out.decode()
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _raftsvc; {more}"
    command = f'{script}\n{ask}; [ "${{#COMPREPLY[@]}}" = 0 ] || printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raftsvc sta", "status"),
        ("raftsvc --at /tmp ev", "evict"),
        ("raftsvc evict --fo", "--force"),
        ("raftsvc --key", "--key-file"),
        ("raftsvc completion z", "zsh"),
        ("raftsvc status --at /et", "/etc"),
    ],
)
def test_bash_completes_commands_and_flags(shell: Shell, line: str, expected: str) -> None:
    assert expected in completed_by_bash(shell, line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raftsvc verify back", []),
        ("raftsvc backup ''", []),
        ("raftsvc lock nightly -- ./night", []),
        ("raftsvc secret ''", ["abort", "make", "rotate", "status"]),
    ],
)
def test_bash_completes_files_where_there_is_neither_a_flag_nor_a_word(
    shell: Shell, line: str, expected: list[str]
) -> None:
    assert sorted(completed_by_bash(shell, line)) == expected
    assert " -o default " in completed_by_bash(shell, line, "complete -p raftsvc")[0]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here")
def test_zsh_takes_its_script(shell: Shell) -> None:
    script = shell("completion", "zsh").out
    ask = b"autoload -Uz compinit; compinit -D -u\n" + script + b"\nprint -r -- $_comps[raftsvc]; whence -w _raftsvc\n"
    done = subprocess.run(["zsh", "-f"], input=ask, capture_output=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == (b"_raftsvc\n_raftsvc: function\n", b"")


def test_the_library_does_not_know_of_its_command_line() -> None:
    ask = "import sys, raftsvc, raftsvc.kv; print([m for m in sys.modules if m.startswith('raftsvc.commands')])"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=True
    )
    assert done.stdout == "[]\n"
