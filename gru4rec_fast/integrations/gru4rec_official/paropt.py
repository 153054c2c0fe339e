"""Optimize hyper-parameters with Optuna, with the options of the official paropt.py.

    python -m gru4rec_fast.integrations.gru4rec_official.paropt train.tsv validation.tsv -opf space.json -pm mrr -nt 100

The parameter space is a file with one JSON object per line, such as

    {"name": "layers", "dtype": "int", "values": [50, 200], "step": 50}
    {"name": "learning_rate", "dtype": "float", "values": [0.02, 0.3], "step": 0.02}
    {"name": "loss", "dtype": "categorical", "values": ["cross-entropy", "bpr-max"]}
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru4rec_fast._untrusted import brief, parse_json
from gru4rec_fast.data import SessionStore
from gru4rec_fast.integrations.gru4rec_official.estimator import GRU4Rec, batch_eval, require_trained
from gru4rec_fast.integrations.gru4rec_official.options import add_shared_options, open_log, print_metrics, run_program
from gru4rec_fast.models import parse_parameter_string

if TYPE_CHECKING:
    import optuna

_MODULE = "gru4rec_fast.integrations.gru4rec_official.paropt"


@dataclass(frozen=True)
class SearchedParameter:
    """A parameter and the values to try.

    Attributes:
        name: name of the parameter.
        dtype: "int", "float" or "categorical".
        values: smallest and largest value; for "categorical" all values.
        step: difference between neighboring values. None: 1 for "int"; any value in the range for "float".
        log: whether to sample on a logarithmic scale.
    """

    name: str
    dtype: str
    values: list[Any]
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        GRU4Rec.check_names([self.name])
        if self.dtype not in ("int", "float", "categorical"):
            raise ValueError(f"dtype={brief(self.dtype)}: choose int, float or categorical")
        if not isinstance(self.values, list) or not (self.dtype == "categorical" or len(self.values) == 2):
            raise ValueError(f"values={brief(self.values)}: give a list; for int and float, [smallest, largest]")

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value to try in a trial."""
        if self.dtype == "categorical":
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.dtype == "int":
            return trial.suggest_int(self.name, int(low), int(high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, float(low), float(high), step=self.step, log=self.log)


def read_parameter_space(path: str | Path) -> list[SearchedParameter]:
    """Read a parameter space. Raises ValueError for a line that is no valid parameter; the message names it."""
    space = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                space.append(SearchedParameter(**parse_json(line)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {brief(error, 200)}") from error
    if not space:
        raise ValueError(f"{path} has no parameter: give one JSON object per line")
    return space


def main(arguments: list[str] | None = None) -> int:
    """Run the program with the arguments of the command line, and return its exit code."""
    return run_program(_parser(), _run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}", description="Optimize the hyper-parameters of GRU4Rec with Optuna."
    )
    parser.add_argument("path", metavar="PATH", help="training log (TSV, CSV or Parquet)")
    parser.add_argument("test", metavar="TEST_PATH", help="log that the models are evaluated on")
    parser.add_argument(
        "-opf", "--optuna_parameter_file", metavar="FILE", required=True, help="parameter space, a JSON object per line"
    )
    parser.add_argument(
        "-fp", "--fixed_parameters", metavar="NAME=VALUE,...", default="", help="parameters with one value"
    )
    parser.add_argument(
        "-m", "--measure", metavar="K", type=int, default=20, help="cut-off of the metric to maximize (default: 20)"
    )
    parser.add_argument("-nt", "--ntrials", metavar="N", type=int, default=50, help="number of trials (default: 50)")
    parser.add_argument(
        "-fm",
        "--final_measure",
        metavar="K",
        type=int,
        nargs="+",
        default=[20],
        help="cut-offs of the metrics of the best parameters (default: 20)",
    )
    add_shared_options(parser)
    return parser


def _run(options: argparse.Namespace) -> None:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("paropt needs Optuna: pip install optuna") from error
    space = read_parameter_space(options.optuna_parameter_file)
    fixed = parse_parameter_string(options.fixed_parameters)
    if twice := [parameter.name for parameter in space if parameter.name in fixed]:
        raise ValueError(f"{', '.join(twice)}: give a parameter either in -fp or in {options.optuna_parameter_file}")
    train = open_log(options.path, options)
    test = open_log(options.test, options, train.vocabulary)

    def objective(trial: optuna.Trial) -> float:
        model = _fit(fixed | {parameter.name: parameter.suggest(trial) for parameter in space}, train, options.device)
        if model.error_during_train:
            raise optuna.TrialPruned
        recall, mrr = batch_eval(model, test, [options.measure], mode=options.eval_type)
        return (recall if options.primary_metric == "recall" else mrr)[options.measure]

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=options.ntrials)
    if all(trial.state is optuna.trial.TrialState.PRUNED for trial in study.trials):
        raise RuntimeError("the training of every trial has diverged: search smaller learning rates")
    best = ",".join(f"{name}={value}" for name, value in study.best_params.items())
    print(f"best {options.primary_metric}@{options.measure} {study.best_value:.6f} with {best}")
    model = _fit(fixed | study.best_params, train, options.device)
    require_trained(model)
    print_metrics(model, test, options.final_measure, options.eval_type)


def _fit(parameters: dict[str, Any], train: SessionStore, device: str) -> GRU4Rec:
    return GRU4Rec(device=device).set_params(**parameters).fit(train, progress=False)


if __name__ == "__main__":
    sys.exit(main())
