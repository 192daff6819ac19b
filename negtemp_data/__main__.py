"""`negtemp` and `python -m negtemp_data`.

An interrupt is one line from the start, which is why click is imported in here.
"""

import signal
import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Runs the command line; see `negtemp_data.cli.main`."""
    try:
        from negtemp_data.cli.main import main as run_command  # noqa: PLC0415

        run_command()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(EXIT_INTERRUPTED)
    finally:
        # What libraries do at the interpreter's end would answer with tracebacks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
