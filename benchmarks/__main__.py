"""Run benchmarks: `python -m benchmarks [PART...]`."""

from benchmarks.run import main

if __name__ == "__main__":
    main()
