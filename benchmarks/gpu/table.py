"""One markdown table from the JSON files of benchmarks/gpu: python benchmarks/gpu/table.py results/*.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        results = json.loads(path.read_text())
        print(f"{results['device']}, torch {results['torch']}, copy {results['copy_gbytes']:.0f} GB/s\n")
        print("| work | ours, us | against | theirs, us | ratio [quartiles] | share of copy bandwidth |")
        print("|---|---|---|---|---|---|")
        for row in results["rows"]:
            ratio, low, high = row["ratio"]
            print(
                f"| {row['row']} | {row['ours_us'][0]:.1f} | {row['other']} | {row['other_us'][0]:.1f} "
                f"| {ratio:.2f} [{low:.2f}, {high:.2f}] | {row['copy_share']:.0%} |"
            )
        print()


if __name__ == "__main__":
    main()
