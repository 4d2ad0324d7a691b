#!/usr/bin/env bash
# `dsbs train` on a TPU pod slice of TPU VMs: the same command on every host, which find each other by themselves.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=dsbs SHARE=10.0.0.2:/share
#   scripts/tpu_pod.sh create
#   scripts/tpu_pod.sh install
#   scripts/tpu_pod.sh start train --gin_file datasets/cqa --gin_file models/t5_1_1_xxl --data_dir /mnt/dsbs/data \
#     --model_dir /mnt/dsbs/runs/cqa --gin.MESH="'fsdp'"
#   scripts/tpu_pod.sh log           # of every host
#   scripts/tpu_pod.sh stop          # saves first; start again with the same words goes on
#   scripts/tpu_pod.sh delete
set -euo pipefail
cd "$(dirname "$0")/.."

PROJECT=${PROJECT:?the Google Cloud project}
ZONE=${ZONE:?e.g. us-west4-a}
NAME=${NAME:-dsbs}
TYPE=${TYPE:-v5litepod-16}                # the slice: `gcloud compute tpus accelerator-types list`
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}   # its image: `gcloud compute tpus tpu-vm versions list`
SHARE=${SHARE:-}                          # an NFS share (Filestore), mounted at /mnt/dsbs: runs lie where all hosts see them
CREATE_OPTIONS=${CREATE_OPTIONS:-}        # e.g. --spot

vm() { gcloud compute tpus tpu-vm "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"; }
on_all() { vm ssh --worker=all --command="$1"; }

case "${1:-}" in
  create)
    # Unquoted on purpose: several options, or none.
    # shellcheck disable=SC2086
    vm create --accelerator-type="$TYPE" --version="$RUNTIME" $CREATE_OPTIONS
    ;;
  install)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    git archive --format=tar.gz --output="$folder/dsbs_jax.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$folder/dsbs_jax.tar.gz" "$NAME:" \
      --project="$PROJECT" --zone="$ZONE" --worker=all
    # The image's own Python is older than 3.11.
    on_all "set -e
      mkdir -p dsbs_jax && tar -xzf dsbs_jax.tar.gz -C dsbs_jax
      curl -LsSf https://astral.sh/uv/install.sh | sh
      ~/.local/bin/uv venv --quiet --clear --python 3.12 dsbs_venv
      ~/.local/bin/uv pip install --quiet --python dsbs_venv --constraint dsbs_jax/constraints.txt './dsbs_jax[tpu]'
      if [ -n '$SHARE' ]; then
        sudo apt-get install --quiet --yes nfs-common && sudo mkdir -p /mnt/dsbs
        mountpoint --quiet /mnt/dsbs || sudo mount -t nfs '$SHARE' /mnt/dsbs
      fi"
    ;;
  start)
    # Runs on when the connection ends. DSBS_DISTRIBUTED=1: the VM's metadata names the other hosts.
    on_all "DSBS_DISTRIBUTED=1 nohup ~/dsbs_venv/bin/dsbs $(printf '%q ' "${@:2}") >>~/dsbs.log 2>&1 </dev/null &
      echo \$! >~/dsbs.pid"
    ;;
  log) on_all "tail -n 20 ~/dsbs.log" ;;
  stop) on_all "kill -TERM \$(cat ~/dsbs.pid)" ;;
  delete) vm delete --quiet ;;
  *)
    echo "usage: $0 create | install | start VERB ... | log | stop | delete" >&2
    exit 2
    ;;
esac
