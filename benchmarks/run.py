"""What ``make bench`` measures: compaction of the demo's run, or of the run folders given.

    python benchmarks/run.py [runs/NAME …]

Trains the demo first where no run is given and none is there. Writes one file per run to
``benchmarks/results``. Let nothing else run on the machine meanwhile.
"""

import subprocess
import sys
from pathlib import Path

DEMO = Path("runs/demo")


def main(runs: list[Path]) -> None:
    if not runs:
        if not (DEMO / "config.json").is_file():
            subprocess.run([sys.executable, "-m", "offramp.cli.main", "demo"], check=True)
        runs = [DEMO]
    for run in runs:
        target = Path("benchmarks/results") / f"compaction_{run.name}.json"
        script = Path(__file__).with_name("compaction.py")
        subprocess.run(
            [sys.executable, str(script), str(run), "--results-file", str(target)], check=True
        )
        print(target)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
