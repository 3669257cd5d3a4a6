"""What went wrong, as one sentence on stderr and an exit code; with ``--json`` on stdout too."""

from typing import Any

import typer
from typer.core import TyperGroup

from offramp.cli.terminal import emit, say
from offramp.errors import OfframpError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_JSON = "offramp.json"
# typer brings its own copy of click or uses the installed one, by version
_USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


class Commands(TyperGroup):
    """The commands of ``offramp``, with errors for the person at the keyboard."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise  # a mistake of ours: the traceback is what a bug report needs
            if ctx.meta[_JSON]:
                emit({"error": sentence})
            say(f"[bold red]Error:[/] {escaped(sentence)}")
            raise typer.Exit(MISUSED if isinstance(error, _USAGE) else FAILED) from None


def explain(error: Exception) -> str | None:
    """One sentence for errors that come from what the user gave; None for any other."""
    if isinstance(error, OfframpError):
        return " ".join(str(error).split())
    if isinstance(error, _USAGE):
        context: Any = getattr(error, "ctx", None)
        message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
        return f"{message} (see {context.command_path if context else 'offramp'} --help)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return _invalid(error)


def _invalid(error: Exception) -> str | None:
    """A file's content that no reader turned into an `OfframpError` of its own."""
    import yaml
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or error.title
        return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML ({' '.join(str(error).split())})"
    return None


def escaped(text: str) -> str:
    """``text`` with its square brackets shown as they are."""
    from rich.markup import escape

    return escape(text)
