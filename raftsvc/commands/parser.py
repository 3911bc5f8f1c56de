"""What can be said on the command line: commands, flags, and the variable of the environment that each flag has."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import raftsvc
from raftsvc.commands import (
    checks,
    cluster,
    completion,
    directories,
    holding,
    moving,
    rotation,
    serving,
    status,
    upkeep,
    values,
    watching,
)
from raftsvc.commands.codes import NOT_RUN, USAGE, CommandError

_PREFIX: Final = "RAFTSVC_"
_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"", "0", "false", "no", "off"}

_CODES: Final = """\
exit codes:
  0 done (status: the cluster serves)      1 the answer is no: not found, a conflict, refused; nothing was changed
  2 what was asked makes no sense          3 not reached in time; nothing was changed, it may be repeated
  4 the outcome is not known               5 the key is not known, or does not give the right
  6 a file or the output failed            70 a bug of raftsvc
  130 interrupted                          141 nobody reads the output

Every flag has the variable of the environment that its help names; what is given on the line comes first.
"""

_HOLDING_CODES: Final = """\
exit code: the command's own, or 128 and the number of the signal that ended it;
  123 it was lost, and the command was ended   124 not got within --wait   125 the command was not run
  126 the command cannot be executed           127 there is no such command
"""

_MOST: Final = 10_000
WITH_COMMAND: Final = ("lock", "elect")
"""What is after `--` is a command."""


class Parser(argparse.ArgumentParser):
    """Of one command, or of all.

    usage_code: by which the process ends if its arguments make no sense.
    about:      what the command does, in a line.
    words:      its flags and choices; those in `files` are followed by a file.
    commands:   those that it has itself, by their names.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.usage_code = USAGE
        self.about = ""
        self.words: list[str] = []
        self.files: list[str] = []
        self.commands: dict[str, Parser] = {}

    def error(self, message: str) -> NoReturn:
        self.exit(self.usage_code, f"raftsvc: {' '.join(message.split())} (see {self.prog} --help)\n")


class Flags:
    """Adds flags to parsers, each with its variable.

    names:  of all variables.
    valued: the flags that have a value.
    problem: what the environment says of a switch that makes no sense; empty: nothing.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.names: set[str] = set()
        self.valued: set[str] = set()
        self.problem = ""

    def add(
        self, parser: Parser, flag: str, about: str, default: Any = None, group: Any = None, **options: Any
    ) -> None:
        """A flag with a value; what the environment says is checked like what is given.  group: of the parser."""
        name = self._name(parser, flag)
        if options.get("metavar") in ("FILE", "PLACE"):
            parser.files.append(flag)
        said = self._environ.get(name, "").strip()
        self.valued.add(flag)
        if default is not argparse.SUPPRESS:
            default = said or default
        (group or parser).add_argument(flag, default=default, help=f"{about} [{name}]", **options)

    def switch(self, parser: Parser, flag: str, about: str, group: Any = None, is_kept: bool = False) -> None:
        """A flag without a value, whose variable says 1 or 0.  is_kept: what was said before the command stands."""
        name = self._name(parser, flag)
        bare = flag.lstrip("-")
        default: Any = argparse.SUPPRESS if is_kept else self._is_on(name)
        options: dict[str, Any] = {"default": default, "dest": bare.replace("-", "_")}
        (group or parser).add_argument(flag, action="store_true", help=f"{about} [{name}]", **options)
        (group or parser).add_argument(f"--no-{bare}", action="store_false", help=argparse.SUPPRESS, **options)

    def _is_on(self, name: str) -> bool:
        said = self._environ.get(name, "").strip().lower()
        if said not in _TRUE | _FALSE:
            self.problem = f"{name} is 1 or 0, not {said!r:.100}"  # by which code is known once the command is
        return said in _TRUE

    def _name(self, parser: Parser, flag: str) -> str:
        parser.words.append(flag)
        name = _PREFIX + flag.lstrip("-").replace("-", "_").upper()
        self.names.add(name)
        return name


class _Commands:
    """Adds commands to a parser."""

    def __init__(self, parser: Parser, flags: Flags) -> None:
        self._parser = parser
        self._kinds = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
        self._flags = flags

    def add(self, name: str, function: Callable[[Any], int], about: str, example: str, more: str = "") -> Parser:
        """One, whose arguments are then added to what is returned."""
        parser: Parser = self._kinds.add_parser(
            name,
            help=about,
            description=textwrap.fill(f"{about[0].upper()}{about[1:]}. {more}".strip(), 100),
            epilog=f"example:\n  {example}\n\n{_HOLDING_CODES if name in WITH_COMMAND else _CODES}",
        )
        parser.set_defaults(function=function)
        parser.about = about
        self._parser.commands[name] = parser
        _add_common(parser, self._flags, is_kept=True)
        return parser


def build(environ: Mapping[str, str]) -> tuple[Parser, Flags]:
    """The parser of all commands, and its flags."""
    flags = Flags(environ)
    parser = Parser(
        prog="raftsvc",
        description="The command line of raftsvc.",
        epilog=f"example:\n  raftsvc --at /var/lib/app/raft status\n\n{_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"raftsvc {raftsvc.__version__}")
    _add_common(parser, flags, is_kept=False)
    parser.set_defaults(dir=environ.get("RAFTSVC_DIR", "").strip(), function=None, run=(), parser=parser)
    commands = _Commands(parser, flags)
    _add_looks(commands)
    _add_values(commands, flags)
    _add_moving(commands, flags)
    _add_watch(commands, flags)
    _add_holding(commands, flags)
    _add_changes(commands, flags)
    _add_upkeep(commands, flags)
    _add_checks(commands, flags)
    _add_directories(commands, flags)
    _add_serve(commands, flags)
    shells = commands.add(
        "completion",
        completion.complete,
        "print what completes commands and flags in a shell",
        'eval "$(raftsvc completion bash)"',
    )
    shells.add_argument("shell", choices=["bash", "zsh"])
    shells.words += ["bash", "zsh"]
    return parser, flags


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Any:
    """What was said.  Ends the process with usage or help; raises CommandError."""
    parser, flags = build(environ)
    words, run = list(argv), []
    command = _command_in(words, flags)
    if command in WITH_COMMAND and "--" in words:
        place = words.index("--")
        words, run = words[:place], words[place + 1 :]
    usage_code = NOT_RUN if runs_command(command, run) else USAGE
    parser.usage_code = usage_code
    for each in parser.commands.values():
        each.usage_code = usage_code
    if flags.problem:
        raise CommandError(flags.problem, usage_code)
    args = parser.parse_args(words)
    if args.function is None:
        parser.error("which command?")
    args.run = run
    return args


def runs_command(command: str, run: Sequence[str]) -> bool:
    """Whether it is to run another, so that the codes of that are told apart from its own; a lock always is."""
    return command in WITH_COMMAND and (command == "lock" or bool(run))


def _command_in(words: Sequence[str], flags: Flags) -> str:
    """The command that is said; empty if none is."""
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif not word.startswith("-"):
            return word
        else:
            is_value = word in flags.valued
    return ""


def _add_common(parser: Parser, flags: Flags, is_kept: bool) -> None:
    """Flags of all commands.  is_kept: what was said before the command stands, unless it is said again."""
    group = parser.add_argument_group("where and how")
    nothing: Any = argparse.SUPPRESS if is_kept else ""
    seconds: Any = argparse.SUPPRESS if is_kept else "10"
    where = "the directory of the node of this host, or HOST:PORT of members with commas between; else RAFTSVC_DIR"
    add = partial(flags.add, parser, group=group)
    add("--at", where, nothing, metavar="PLACE")
    add("--key-file", "a file with the client key, name:key", nothing, metavar="FILE")
    add("--ca-file", "the certificates that members are to have, with https", nothing, metavar="FILE")
    add("--cert-file", "the certificate to show to members", nothing, metavar="FILE")
    add("--cert-key-file", "its key, if that is in another file", nothing, metavar="FILE")
    add("--timeout", "seconds for each answer (10)", seconds, metavar="SECONDS", type=_seconds)
    flags.switch(parser, "--json", "one JSON document; its keys are in docs/commands.md", group, is_kept)


def _add_looks(commands: _Commands) -> None:
    commands.add("status", status.show, "show how the cluster is, and whether it can lose one more", "raftsvc status")
    commands.add("members", status.members, "list the members", "raftsvc members --json")


def _add_values(commands: _Commands, flags: Flags) -> None:
    get = commands.add("get", values.get, "write the value of a key, byte by byte", "raftsvc get config > config.toml")
    get.add_argument("key", metavar="KEY")
    flags.switch(get, "--stale", "as one member knows it, which may be behind: no majority is asked")
    put = commands.add(
        "set", values.put, "give a key a value, and print its version", "raftsvc set config - < config.toml"
    )
    put.add_argument("key", metavar="KEY")
    put.add_argument("value", metavar="VALUE", help="the value; - reads the standard input to its end")
    flags.add(put, "--ttl", "seconds after which the key is gone", type=_seconds, metavar="SECONDS")
    _add_conditions(put, flags)
    delete = commands.add("delete", values.delete, "delete a key", "raftsvc delete jobs/7 --if-version 1234")
    delete.add_argument("key", metavar="KEY")
    flags.add(delete, "--if-version", "only if it has this version", type=_natural, metavar="VERSION")
    listing = commands.add("list", values.listing, "list keys in their order", "raftsvc list jobs/ --limit 100")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only keys that begin so")
    flags.add(listing, "--limit", "so many at most", type=_natural, metavar="N")
    flags.add(listing, "--after", "only what comes after this key", "", metavar="KEY")
    flags.switch(listing, "--long", "version and size too")
    incr = commands.add("incr", values.incr, "count, and print what it became", "raftsvc incr visits --by 10")
    incr.add_argument("key", metavar="KEY")
    flags.add(incr, "--by", "what is added (1)", "1", type=_integer, metavar="N")
    flags.add(incr, "--initial", "what a key counts for that does not exist (0)", "0", type=_integer, metavar="N")
    flags.add(incr, "--ttl", "seconds after which a key made by this is gone", type=_seconds, metavar="SECONDS")


def _add_moving(commands: _Commands, flags: Flags) -> None:
    export = commands.add(
        "export",
        moving.export,
        "write all keys and values, a line of JSON for each",
        "raftsvc export --below app/ app.jsonl",
        "No backup: without locks, queues, jobs and times to live, and not all of one moment.",
    )
    export.add_argument("file", metavar="FILE", nargs="?", default="", help="a new file; else the standard output")
    flags.add(export, "--below", "only keys that begin so", "", metavar="PREFIX")
    bring = commands.add(
        "import",
        moving.bring,
        "write keys and values that were exported",
        "raftsvc import app.jsonl",
        "What is there already is not written anew, so it may be cut off, and run again.",
    )
    bring.add_argument("file", metavar="FILE", nargs="?", default="", help="else, or by -, the standard input")
    flags.add(bring, "--ttl", "seconds after which all of them are gone", type=_seconds, metavar="SECONDS")
    flags.switch(bring, "--if-absent", "only keys that are not there, whatever others have")


def _add_conditions(parser: Parser, flags: Flags) -> None:
    flags.add(parser, "--if-version", "only if it has this version; 0: none", type=_natural, metavar="VERSION")
    flags.switch(parser, "--if-absent", "only if there is no such key")


def _add_watch(commands: _Commands, flags: Flags) -> None:
    watch = commands.add(
        "watch",
        watching.watch,
        "print what changes, a line each",
        "raftsvc watch config --count 1 && systemctl reload app",
        "It looks again and again: of several changes between two looks only what comes of them is shown.",
    )
    watch.add_argument("key", metavar="KEY", help="the key; with --prefix what it begins by")
    flags.switch(watch, "--prefix", "of all keys that begin so")
    flags.switch(watch, "--existing", "what there is first")
    flags.add(watch, "--count", "end after so many changes", type=_natural, metavar="N")
    flags.add(watch, "--every", "seconds between two looks (0.5)", "0.5", type=_seconds, metavar="SECONDS")


def _add_holding(commands: _Commands, flags: Flags) -> None:
    lock = commands.add(
        "lock",
        holding.lock,
        "hold a lock of the cluster while a command runs",
        "raftsvc lock nightly --wait 0 -- ./nightly.sh",
        "The command has the lock's fence in RAFTSVC_FENCE. If the lock is lost it is ended, with what it started.",
    )
    lock.usage = "raftsvc lock NAME [flags] -- COMMAND [ARGUMENT ...]"
    lock.add_argument("name", metavar="NAME")
    _add_terms(lock, flags)
    elect = commands.add(
        "elect",
        holding.elect,
        "run a command on one host of many, and on another once that is gone; without one: print who leads",
        "raftsvc elect scheduler -- ./scheduler",
        "It takes part until the command ends by itself; RAFTSVC_FENCE is that of its leading. If leading is lost the "
        "command is ended, and run again once this one leads again.",
    )
    elect.usage = "raftsvc elect NAME [flags] [-- COMMAND [ARGUMENT ...]]"
    elect.add_argument("name", metavar="NAME")
    flags.switch(elect, "--once", "if leading is lost, end instead of taking part anew")
    _add_terms(elect, flags)


def _add_terms(parser: Parser, flags: Flags) -> None:
    flags.add(
        parser,
        "--ttl",
        "seconds after which others have it if this host is gone (15)",
        "15",
        type=_seconds,
        metavar="SECONDS",
    )
    flags.add(
        parser, "--wait", "seconds to wait for it, 0: none; else as long as it takes", type=_wait, metavar="SECONDS"
    )
    grace = "seconds between SIGTERM and SIGKILL once it is lost (a twentieth of --ttl)"
    flags.add(parser, "--grace", grace, type=_wait, metavar="SECONDS")
    flags.add(parser, "--value", "what others are shown of who holds it (host and process)", metavar="TEXT")


def _add_changes(commands: _Commands, flags: Flags) -> None:
    allow = commands.add("allow", cluster.allow, "let the node at an address join", "raftsvc allow n4.example:8001")
    allow.add_argument("addr", metavar="ADDR")
    disallow = commands.add(
        "disallow", cluster.disallow, "let it join no more", "raftsvc disallow n4.example:8001", "Members stay: evict."
    )
    disallow.add_argument("addr", metavar="ADDR")
    evict = commands.add(
        "evict",
        cluster.evict,
        "remove a member",
        "raftsvc --at /var/lib/app/raft evict n3.example:8001",
        "On the host of a member. Refused if the rest would have no majority that is up.",
    )
    evict.add_argument("addr", metavar="ADDR", help="its address, or its id")
    flags.switch(evict, "--replace", "the node that is there next takes its place: it may join, once")
    flags.switch(evict, "--force", "even if the rest may have no majority that is up")
    transfer = commands.add(
        "transfer",
        cluster.transfer,
        "hand leadership over",
        "raftsvc --at /var/lib/app/raft transfer n2.example:8001",
        "On the host of the leader.",
    )
    transfer.add_argument("addr", metavar="ADDR", nargs="?", help="to this voter; else to the one that is best fit")
    init = "have the node of this host found a cluster"
    commands.add("init", cluster.init, init, "raftsvc --at /var/lib/app/raft init")
    join = commands.add(
        "join", cluster.join, "have the node of this host join", "raftsvc --at /var/lib/app/raft join n1.example:8001"
    )
    join.add_argument("addr", metavar="ADDR", help="of any member")


def _add_upkeep(commands: _Commands, flags: Flags) -> None:
    replace = commands.add(
        "replace",
        upkeep.replace,
        "have a new node take the place of a member, which is evicted once the new one votes",
        "raftsvc --at /var/lib/app/raft replace n3.example:8001 n4.example:8001",
        "On the host of another member. It lets the new one join, waits until it is a voter and current, and evicts "
        "the old one. Run again it goes on where it was cut off.",
    )
    replace.add_argument("old", metavar="OLD")
    replace.add_argument("new", metavar="NEW")
    flags.add(replace, "--wait", "seconds for all of it (600)", type=_wait, metavar="SECONDS")
    drain = commands.add(
        "drain",
        upkeep.drain,
        "have the node of this host lead no more and be not ready, and return once it is safe to stop it",
        "raftsvc --at /var/lib/app/raft drain && systemctl restart app",
        "Until the node is started anew. Refused if the others would have no majority without it.",
    )
    flags.switch(drain, "--undo", "it may lead again, and takes callers")
    flags.switch(drain, "--force", "even if the others have no majority without it")
    flags.add(drain, "--wait", "seconds until it is safe (60)", type=_wait, metavar="SECONDS")
    secret = commands.add(
        "secret",
        rotation.secret,
        "give the cluster another secret, on the host of each member in turn",
        "(umask 077; raftsvc secret make > new) && raftsvc --at /var/lib/app/raft secret rotate new",
        "rotate takes the step that is next on this host: accept the new secret, sign with it, drop the former ones; "
        "each once all members confirm the one before. abort takes the first step back, where nobody can be about to "
        "sign with the new secret. status shows who is how far; make prints a new secret.",
    )
    secret.add_argument("action", choices=["make", "status", "rotate", "abort"])
    secret.add_argument("file", metavar="FILE", nargs="?", help="with the new secret; - reads the standard input")
    secret.words += ["make", "status", "rotate", "abort"]
    flags.add(secret, "--wait", "take all steps that are left, each once all confirm", type=_wait, metavar="SECONDS")


def _add_checks(commands: _Commands, flags: Flags) -> None:
    check = commands.add(
        "check",
        checks.check,
        "measure disk, members and writes, and say whether they are fast enough",
        "raftsvc --at /var/lib/app/raft check perf",
        "It writes to the cluster, small values that it deletes. By a directory it measures that disk and the members, "
        "too.",
    )
    check.add_argument("what", choices=["perf"])
    check.words.append("perf")
    flags.add(check, "--within", "seconds to write for (10)", "10", type=_seconds, metavar="SECONDS")
    flags.add(check, "--rate", "writes a second, of all clients together (150)", "150", type=_count, metavar="N")
    flags.add(check, "--clients", "so many write at once (16)", "16", type=_count, metavar="N")
    dump = commands.add(
        "sysdump",
        checks.sysdump,
        "write all that a bug report needs to a file, without secrets",
        "raftsvc --at /var/lib/app/raft sysdump report.tar.gz",
        "On the host of a member. Look at it before you publish it: addresses and names are in it.",
    )
    dump.add_argument("file", metavar="FILE", help="a .tar.gz; one that is there is replaced")


def _add_directories(commands: _Commands, flags: Flags) -> None:
    backup = commands.add(
        "backup",
        directories.backup,
        "write all that the cluster has to a file, while it works",
        "raftsvc --at /var/lib/app/raft backup /var/backups/app.raft",
        "On the host of a member its process writes it; from elsewhere it is sent, to a key with the right to admin.",
    )
    backup.add_argument("file", metavar="FILE", help="one that is there is replaced once the new one is whole")
    flags.switch(
        backup, "--stopped", "of a node that is stopped: what its directory has, which may be long out of date"
    )
    flags.add(backup, "--within", "seconds for it (3600)", "3600", type=_seconds, metavar="SECONDS")
    inspect = commands.add(
        "inspect",
        directories.inspect,
        "show what is in a stopped node's directory",
        "raftsvc inspect /var/lib/app/raft",
    )
    inspect.add_argument("directory", metavar="DIRECTORY")
    flags.switch(inspect, "--entries", "those of the log too")
    verify = commands.add(
        "verify",
        directories.verify,
        "find out whether a stopped node's directory, or a backup, is whole",
        "raftsvc verify /var/backups/app.raft",
    )
    verify.add_argument("path", metavar="PATH")
    restore = commands.add(
        "restore",
        directories.restore,
        "make the directory of a new cluster from a backup",
        "raftsvc restore app.raft /var/lib/app/raft n1.example:8001",
        "End the former cluster first. Then start the node; the others join it with empty directories.",
    )
    restore.add_argument("file", metavar="FILE")
    restore.add_argument("directory", metavar="DIRECTORY", help="missing, or empty")
    restore.add_argument("addr", metavar="ADDR", help="where the node will be reached")
    above = "go on above this index, where clocks cannot be trusted: see docs/backup.md"
    flags.add(restore, "--above", above, type=_natural, metavar="INDEX")
    survey = commands.add(
        "survey",
        directories.survey,
        "show what stopped nodes' directories hold, and what each choice among them would lose",
        "raftsvc survey /n1/raft /n2/raft",
    )
    survey.add_argument("directory", metavar="DIRECTORY", nargs="+")
    recover = commands.add(
        "recover",
        directories.recover,
        "make a new cluster from one directory, where a majority of the members is lost for good",
        "raftsvc recover /n1/raft n1.example:8001 /n2/raft",
        "It shows what is left, and asks. What the directory had is kept in it.",
    )
    recover.add_argument("directory", metavar="DIRECTORY", help="that is gone on from")
    recover.add_argument("addr", metavar="ADDR", help="where the node will be reached")
    recover.add_argument("other", metavar="OTHER", nargs="*", help="the directories of the other survivors")
    flags.add(recover, "--above", above, type=_natural, metavar="INDEX")
    flags.switch(recover, "--accept-loss", "though others hold what this one does not")
    flags.switch(recover, "--yes", "ask nobody")


def _add_serve(commands: _Commands, flags: Flags) -> None:
    serve = commands.add(
        "serve",
        serving.serve,
        "run a node that serves the store over HTTP and JSON",
        "raftsvc serve --bind 0.0.0.0:8080 --keys-file keys",
        "The node is told by RAFTSVC_ADDR, RAFTSVC_DIR, RAFTSVC_INITIAL_CLUSTER, RAFTSVC_SECRET_FILE; docs/http.md.",
    )
    flags.add(serve, "--bind", "host:port (127.0.0.1:8080)", "127.0.0.1:8080", metavar="HOST:PORT")
    flags.add(
        serve, "--keys-file", "who may what, watched: lines of name, read or write, key, maybe a prefix", metavar="FILE"
    )
    flags.switch(serve, "--open", "everybody on this machine may read and write; only with a loopback --bind")
    flags.add(serve, "--max-watchers", "so many may watch at once (128)", "128", type=_natural, metavar="N")


def _number(text: str, least: float) -> float:
    number = float(text)  # argparse knows what a ValueError means
    if not (math.isfinite(number) and number >= least):
        raise ValueError
    return number


def _seconds(text: str) -> float:
    return _number(text, 0.001)


def _wait(text: str) -> float:
    return _number(text, 0.0)


def _integer(text: str) -> int:
    return int(text)


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MOST:
        raise ValueError
    return number


_count.__name__ = f"whole number from 1 to {_MOST}"
for _type, _what in ((_seconds, "number of seconds"), (_wait, "number of seconds"), (_natural, "whole number")):
    _type.__name__ = _what
_integer.__name__ = "whole number"
