#!/usr/bin/env bash
# What the accelerators here make of T5 v1.1 base, large, XL (3B) and XXL (11B): `dsbs bench step` for each, one line of
# JSON a size. Adafactor, bfloat16 parameters and activations. A size that does not fit is said and passed over.
#
#   scripts/bench_accelerator.sh                          # all sizes, rows for one GPU of 141 GB
#   SIZES=large ROWS_large=64 scripts/bench_accelerator.sh --gin.MESH="'fsdp'"
#
# Further words go to every `dsbs bench step`. For memory foretold without a device: `dsbs aot` with the same words.
set -euo pipefail

OUTPUT=${OUTPUT:-bench_accelerator.jsonl} # lines are added
SIZES=${SIZES:-base large xl xxl}
DSBS=${DSBS:-dsbs}
REMAT=${REMAT:-minimal} # attention scores are recomputed, products with parameters are kept
# Rows of a batch over all devices, of 512 + 128 tokens (TASK_FEATURE_LENGTHS). More rows fill a chip better.
ROWS_base=${ROWS_base:-256}
ROWS_large=${ROWS_large:-128}
ROWS_xl=${ROWS_xl:-64}
ROWS_xxl=${ROWS_xxl:-32}

failed=()
for size in $SIZES; do
  rows="ROWS_$size"
  echo "== $size, ${!rows} rows" >&2
  # A process of its own: the peak of its memory is its own, and out of memory ends it alone.
  if line=$("$DSBS" bench step --gin_file "models/t5_1_1_$size" --gin.BATCH_SIZE="${!rows}" \
    --gin.T5Config.remat_policy="'$REMAT'" "$@"); then
    echo "$line" | tee -a "$OUTPUT"
  else
    failed+=("$size")
  fi
done
if ((${#failed[@]})); then
  echo "Not measured: ${failed[*]}. Fewer rows (ROWS_${failed[0]}=...) or REMAT=full need less memory." >&2
  exit 1
fi
