#!/usr/bin/env bash
# Full training runs on a GPU, in pieces of under 9 minutes that go on where the one before stopped.
#
#   benchmarks/gpu/long.sh FOLDER NAME     plays a piece of the run NAME; call it again until it says "finished"
#
# FOLDER/data holds the logs; FOLDER/runs/NAME the run: its options on the first line of FOLDER/runs/NAME.options, as
# `gru4rec-fast train` takes them. Ends with 0 when the run is finished, with 75 when another call is needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ $# -ne 2 ]; then
  echo "usage: benchmarks/gpu/long.sh FOLDER NAME" >&2
  exit 2
fi
folder=$1 name=$2
python=${PYTHON:-python3}
run="$folder/runs/$name"
if [ ! -s "$run.options" ]; then
  echo "$run.options is not there: write the options of gru4rec-fast train into it, on one line" >&2
  exit 2
fi
export PYTHONPATH=.
"$python" -c '
import torch
assert torch.cuda.is_available(), "there is no GPU here"' || exit 1
read -r -a options <"$run.options"
resume=()
if [ -d "$run" ]; then resume=(--resume); fi
code=0
# An interrupt lets the trainer write its checkpoint; it is given half a minute for that.
timeout --signal INT --kill-after 30 "${SECONDS_A_PIECE:-480}" \
  "$python" -c 'import sys; from gru4rec_fast.cli import main; sys.exit(main())' train "${options[@]}" --out "$run" --device cuda "${resume[@]}" || code=$?
case $code in
  0) echo "finished: $run" ;;
  124 | 130) echo "interrupted after a piece; call again: $run"; exit 75 ;;
  *) exit "$code" ;;
esac
