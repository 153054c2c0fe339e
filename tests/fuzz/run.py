"""Run fuzzers: `python tests/fuzz/run.py --seconds 300 TARGET...` (no target: all).

First the corpus of each target is replayed, then generated cases run for the given time, in processes that may crash.
A finding is saved to the corpus as a JSON file with the smallest case that was found. The exit code is 1 if there are
findings that known.py does not list, or if it lists one that does not happen any more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness import Finding

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
TARGETS = (
    "table_files",
    "session_stores",
    "interaction_graphs",
    "checkpoints",
    "configuration",
    "operators",
    "implementations",
)


def fuzz(name: str, seconds: float, max_cases: int, seed: int, into: Path) -> list[str]:
    """Run the fuzzer of a target. Return one line for each problem, and write new findings to `into`/`name`."""
    from known import KNOWN

    known = {file.removeprefix(f"{name}/") for file in KNOWN if file.startswith(f"{name}/")}
    corpus = {path.name: json.loads(path.read_text()) for path in sorted((CORPUS / name).glob("*.json"))}
    problems = [f"{name}/{file} of known.py is not in the corpus" for file in known - {*corpus}]
    known_findings = [corpus[file] for file in known & {*corpus}]
    names = {finding["finding"] for finding in known_findings}
    skipped = {finding["crash_label"] for finding in known_findings} - {None}
    replayed: dict[str, str] = {}  # name of the finding by file of the corpus
    with tempfile.TemporaryDirectory(prefix="fuzzing") as temporary:
        work = Path(temporary)
        for folder in ("replay", "found"):
            (work / folder).mkdir()
        for file in corpus:
            shutil.copy(CORPUS / name / file, work / "replay" / file)
        deadline = time.monotonic() + seconds
        while not (work / "cases").exists():
            crash = _run_process(name, work, max(deadline - time.monotonic(), 0.1), max_cases, seed, skipped, names)
            seed += 1_000
            files = sorted((work / "replay").iterdir())
            if crash and files:  # the case of the first file crashed
                replayed[files[0].name] = crash.name
                files[0].unlink()
            elif crash:
                if crash.name not in names:
                    crash.save(work / "found")
                skipped.add(crash.crash_label)
            names |= {json.loads(path.read_text())["finding"] for path in (work / "found").glob("*.json")}
        for path in (work / "found").glob("*/*.json"):
            replayed[f"{path.parent.name}.json"] = json.loads(path.read_text())["finding"]
        for path in sorted((work / "found").glob("*.json")):
            (into / name).mkdir(parents=True, exist_ok=True)
            saved = shutil.copy(path, into / name / path.name)
            problems.append(f"{saved}: {json.loads(path.read_text())['finding']}")
        n_cases = (work / "cases").read_text()
    problems += [f"{name}/{file}: {finding}" for file, finding in sorted(replayed.items()) if file not in known]
    mended = (known & {*corpus}) - {*replayed}
    problems += [f"{name}/{file} is no finding any more: remove it from known.py" for file in sorted(mended)]
    print(f"{name}: {len(corpus)} cases replayed, {n_cases} cases generated, {len(problems)} problems", flush=True)
    return problems


def _run_process(
    name: str, work: Path, seconds: float, max_cases: int, seed: int, skipped: set[str], known: set[str]
) -> Finding | None:
    """Run `run_cases` in a new process. Return the case that was running if the process crashed or hung."""
    from harness import Finding

    limits = {"seconds": seconds, "max_cases": max_cases, "first_seed": seed}
    arguments = json.dumps({**limits, "skipped": [*skipped], "known": [*known]})
    with open(work / "stderr", "w+") as stderr:
        command = [sys.executable, "-P", __file__, "--process", name, str(work), arguments]
        code = subprocess.run(command, stdout=stderr, stderr=stderr, check=False).returncode
        stderr.seek(0)
        detail = stderr.read()[-3000:]
    if code == 0:
        return None
    if code == -signal.SIGTERM or ("Timeout (" not in detail and code > 0) or not (work / "current.json").exists():
        raise RuntimeError(f"the fuzzer of {name} failed:\n{detail}")
    current = json.loads((work / "current.json").read_text())
    what = signal.Signals(-code).name if code < 0 else "hang"
    return Finding(f"{what} {current['label']}", detail, current["case"], current["label"])


def main() -> int:
    """Run the command of the module's docstring."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if sys.argv[1:2] == ["--process"]:
        from harness import run_cases

        name, work, arguments = sys.argv[2:]
        values = json.loads(arguments)
        skipped, known = set(values["skipped"]), set(values["known"])
        target = importlib.import_module(name).TARGET
        run_cases(target, Path(work), values["seconds"], values["max_cases"], values["first_seed"], skipped, known)
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="maximum duration for each target")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="maximum number of cases for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="by default a random one")
    parser.add_argument("--into", type=Path, default=CORPUS, help="folder of new findings, by default the corpus")
    options = parser.parse_args()
    if unknown := [name for name in options.targets if name not in (*TARGETS, "faulty")]:
        parser.error(f"{unknown[0]} is no target; choose from {', '.join(TARGETS)}")
    print(f"seed {options.seed}", flush=True)
    problems = [
        problem
        for name in options.targets
        for problem in fuzz(name, options.seconds, options.cases, options.seed, options.into)
    ]
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
