"""What completes commands and flags in a shell, made of the parser, so that it knows all that there is."""

from __future__ import annotations

import re
from typing import Any, Final

from raftsvc.commands.codes import DONE
from raftsvc.commands.output import write

_BASH: Final = """\
# Completion of raftsvc for bash: eval "$(raftsvc completion bash)"
_raftsvc() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="" command="" word
    [ "$COMP_CWORD" -gt 0 ] && previous="${{COMP_WORDS[COMP_CWORD - 1]}}"
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in
            {commands}) command="$word"; break ;;
        esac
    done
    COMPREPLY=()
    case "$previous" in
        {files}) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    local words="{names}"
    case "$command" in
{cases}
        *) [ "${{current:0:1}}" = "-" ] && words="{flags}" ;;
    esac
    # A flag begins with a dash.  Where nothing else fits there are files, which bash adds itself.
    local fitting=""
    for word in $words; do
        [ "${{word:0:1}}" = "-" ] && [ "${{current:0:1}}" != "-" ] || fitting="$fitting $word"
    done
    COMPREPLY=($(compgen -W "$fitting" -- "$current"))
}}
complete -o default -F _raftsvc raftsvc
"""

_ZSH: Final = """\
#compdef raftsvc
# Completion of raftsvc for zsh: eval "$(raftsvc completion zsh)", after compinit; or this as a file _raftsvc in $fpath
_raftsvc() {{
    local -a commands
    local word command=""
    commands=(
{described}
    )
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$word" in
            {commands}) command="$word"; break ;;
        esac
    done
    case "${{words[CURRENT-1]}}" in
        {files}) _files; return ;;
    esac
    case "$command" in
{cases}
        *) if [[ "$PREFIX" == -* ]]; then compadd -- {flags}; else _describe command commands; fi ;;
    esac
}}
if [ "$funcstack[1]" = "_raftsvc" ]; then _raftsvc "$@"; else compdef _raftsvc raftsvc; fi
"""


def complete(args: Any) -> int:
    """Print the script."""
    parser = args.parser
    names = sorted(parser.commands)
    shared = {
        "commands": "|".join(names),
        "names": " ".join(names),
        "flags": " ".join(parser.words),
        "files": "|".join(sorted({file for each in (parser, *parser.commands.values()) for file in each.files})),
    }
    words = {name: " ".join(command.words) for name, command in parser.commands.items()}
    if args.shell == "bash":
        cases = "\n".join(f'        {name}) words="{words[name]}" ;;' for name in names)
        write(_BASH.format(cases=cases, **shared).encode())
    else:
        cases = "\n".join(f"        {name}) compadd -- {words[name]}; _files ;;" for name in names)
        described = "\n".join(f"        '{name}:{_plain(parser.commands[name].about)}'" for name in names)
        write(_ZSH.format(cases=cases, described=described, **shared).encode())
    return DONE


def _plain(text: str) -> str:
    """What stands in quotes of a shell, as it is."""
    return re.sub(r"['\\\\:`$]", " ", text)
