"""Run the command line: `python -m selfpatch COMMAND`."""

from selfpatch.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
