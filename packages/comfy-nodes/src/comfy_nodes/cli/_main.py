"""The entry point: read the command line, run the command, answer with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from comfy_nodes.cli._exit import CommandError, ExitCode
from comfy_nodes.cli._parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `torchspan`.

    Args:
        arguments: words after the command's name; None takes them from `sys.argv`.

    Returns:
        0 when all went well, 1 when something was refused or failed (the reason is on stderr), 130 when interrupted.

    Raises:
        SystemExit: with 0 after `--help` and `--version`, with 2 when the command line itself is wrong.
    """
    options = build_parser().parse_args(arguments)
    try:
        exit_code: ExitCode = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        sys.stdout.flush()
        print(f"{options.name}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has what it wanted. Python flushes stdout once more at exit: it gets somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.REFUSED
    except KeyboardInterrupt:
        print(f"{options.name}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return exit_code
