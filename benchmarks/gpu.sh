#!/usr/bin/env bash
# Everything that a GPU is asked, in at most eight minutes: tables in a folder, each row written when it is measured.
#
#   benchmarks/gpu.sh FOLDER                       # on a machine with a GPU
#   benchmarks/gpu.sh FOLDER --sections checks     # some of it
#   benchmarks/gpu.sh FOLDER --smoke               # the same code on tiny networks, on a CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# JAX and PyTorch take turns on one device: neither may keep memory that it does not use.
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
