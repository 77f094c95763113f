import json
import subprocess
import sys
from pathlib import Path


def bench(*arguments: str, cwd: Path) -> dict[str, object]:
    """What a benchmark prints last."""
    command = [sys.executable, "-m", "tools.bench_data", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def test_building_and_reading_are_measured(tmp_path: Path) -> None:
    options = "--canvas 6 --num-aug 3 --workers 1".split()
    built = bench("build", "arc-agi-1", "--out", "data", *options, cwd=tmp_path)
    assert built["examples"] == built["examples_stored"]
    assert built["seconds"] > 0  # type: ignore[operator]
    assert len(built["peak_rss_mb_per_process"]) >= 1  # type: ignore[arg-type]
    read = bench("read", "data", "--global-batch-size", "16", "--steps", "8", cwd=tmp_path)
    assert read["examples_per_second"] > 0  # type: ignore[operator]
    assert set(read["cpu_milliseconds_per_batch_of_a_rank"]) == {"1", "2", "4", "8"}  # type: ignore[call-overload]
