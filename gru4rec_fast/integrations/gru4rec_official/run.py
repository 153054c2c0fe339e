"""Train, evaluate, save and load a model, with the options of the official run.py.

python -m gru4rec_fast.integrations.gru4rec_official train.tsv -t test.tsv -m 5 20 -ps layers=100,logq=1
"""

from __future__ import annotations

import argparse
import time

from gru4rec_fast.integrations.gru4rec_official.estimator import GRU4Rec, require_trained
from gru4rec_fast.integrations.gru4rec_official.options import add_shared_options, open_log, print_metrics, run_program
from gru4rec_fast.integrations.gru4rec_official.parameter_file import read_paramfile
from gru4rec_fast.models import parse_parameter_string

_MODULE = "gru4rec_fast.integrations.gru4rec_official"


def main(arguments: list[str] | None = None) -> int:
    """Run the program with the arguments of the command line, and return its exit code."""
    return run_program(_parser(), _run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}", description="Train GRU4Rec, or load a model; evaluate it by recall and MRR."
    )
    parser.add_argument("path", metavar="PATH", help="training log (TSV, CSV or Parquet), or with -l a model file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-ps", "--parameter_string", metavar="NAME=VALUE,...", help="parameters, as in layers=512/256,loss=bpr-max"
    )
    source.add_argument(
        "-pf", "--parameter_file", metavar="FILE", help="Python file that assigns parameters to gru4rec_params"
    )
    source.add_argument(
        "-l", "--load_model", action="store_true", help="load a model, of this package or of the official code"
    )
    parser.add_argument("-s", "--save_model", metavar="FILE", help="file to write the model to, in safetensors format")
    parser.add_argument("-t", "--test", metavar="FILE", nargs="+", default=[], help="test logs")
    parser.add_argument(
        "-m", "--measure", metavar="K", type=int, nargs="+", default=[20], help="cut-offs of the metrics (default: 20)"
    )
    parser.add_argument("-ss", "--sample_store_size", type=int, help="has no effect: negatives are not stored")
    parser.add_argument(
        "-lpm", "--log_primary_metric", action="store_true", help="print the primary metric at the first cut-off"
    )
    add_shared_options(parser)
    return parser


def _run(options: argparse.Namespace) -> None:
    model = GRU4Rec.loadmodel(options.path, options.device) if options.load_model else _train(options)
    if options.save_model:
        model.savemodel(options.save_model)
    for path in options.test:
        started = time.perf_counter()
        test = open_log(path, options, model.vocabulary)
        print(f"{path}: {test.n_sessions} sessions, {options.eval_type} ties")
        primary = print_metrics(model, test, options.measure, options.eval_type)[options.primary_metric]
        print(f"Evaluation took {time.perf_counter() - started:.2f}s")
        if options.log_primary_metric:
            print(f"PRIMARY METRIC: {primary}")


def _train(options: argparse.Namespace) -> GRU4Rec:
    if options.parameter_file:
        parameters = read_paramfile(options.parameter_file)
    else:
        parameters = parse_parameter_string(options.parameter_string)
    model = GRU4Rec(device=options.device).set_params(**parameters)
    log = open_log(options.path, options)
    started = time.perf_counter()
    model.fit(log)
    print(f"Total training time: {time.perf_counter() - started:.2f}s")
    require_trained(model)
    return model
