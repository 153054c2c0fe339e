#!/usr/bin/env bash
# Full training runs on a GPU, in pieces of under 9 minutes that go on where the one before stopped.
#
#   benchmarks/gpu/long.sh FOLDER NAME     plays a piece of the run NAME; call it again until it says "finished"
#
# FOLDER/data holds the logs (prepare_folder.py), FOLDER/runs/NAME the run, which has to stay there between the calls.
# The run's options stand on the first line of FOLDER/runs/NAME.options or, where that is not there, of
# benchmarks/gpu/options/NAME.options, as `gru4rec-fast train` takes them, {folder} standing for FOLDER:
#
#   ngcf_gowalla        NGCF-3 as published, to Recall@20 >= .1557      lightgcn_gowalla      LightGCN-3 as published
#   ngcf_gowalla_b8192  in batches of 8192, learning rate 1e-3          gru4rec_diginetica    GRU4Rec, BPR-max, L512 B128
#
# A second line, `TARGET METRIC VALUE`, asks after how long the metric reached the value: that goes to NAME.json, which
# `python -m gpu.table` takes, in OUT (default FOLDER/runs); so do the curves. SECONDS_A_PIECE (480) and DEVICE (cuda)
# may be set. Ends with 0 when the run is finished, with 75 when another call is needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ $# -ne 2 ]; then
  echo "usage: benchmarks/gpu/long.sh FOLDER NAME" >&2
  exit 2
fi
folder=$1 name=$2
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
runs=$folder/runs
run=$runs/$name
given=$run.options
if [ ! -s "$given" ]; then given=benchmarks/gpu/options/$name.options; fi
if [ ! -s "$given" ]; then
  echo "$run.options is not there: write the options of gru4rec-fast train into it, on one line" >&2
  exit 2
fi
mkdir -p "$runs" "${OUT:=$runs}"
export PYTHONPATH=.:benchmarks GRU4REC_FAST_CACHE=${GRU4REC_FAST_CACHE:-$PWD/build/gpu_cache}
if [ "$device" != cpu ]; then
  "$python" -c 'import torch, sys; torch.cuda.is_available() or sys.exit("there is no GPU here")'
  # As run_all.sh builds, whose library is found again; before the clock of a piece runs.
  export GRU4REC_FAST_BUILD=cuda
  : "${TORCH_CUDA_ARCH_LIST:=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')}"
  export TORCH_CUDA_ARCH_LIST
  "$python" -c 'from gru4rec_fast import _backend; _backend.load()'
fi
{ read -r line && { read -r goal || true; }; } <"$given" || true
read -r -a options <<<"${line//\{folder\}/$folder}"
resume=()
if [ -e "$run/last.safetensors" ]; then resume=(--resume); fi
code=0 begun=$SECONDS
# An interrupt lets the trainer write its checkpoint; it is given half a minute for that. It is heard even where a shell
# started this in the background, with interrupts ignored.
timeout --signal INT --kill-after 30 "${SECONDS_A_PIECE:-480}" "$python" -c '
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from gru4rec_fast.cli import main
sys.exit(main())' train "${options[@]}" --out "$run" --device "$device" ${resume[@]+"${resume[@]}"} || code=$?
echo "$((SECONDS - begun))" >>"$run.pieces"
if [ -e "$run/curves.csv" ]; then
  cp "$run/curves.csv" "$OUT/$name.csv"
  # shellcheck disable=SC2086
  if [ -n "${goal:-}" ]; then "$python" -m gpu.reached "$run" "$device" $goal --out "$OUT/$name.json"; fi
fi
case $code in
  0) echo "finished: $run" ;;
  124 | 130) echo "interrupted after a piece; call again: $run"; exit 75 ;;
  *) exit "$code" ;;
esac
