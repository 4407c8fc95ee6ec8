#!/bin/bash
# A run on several nodes, started on each: torchrun.sh NODE NODES FIRST_NODE [PROCESSES] [more arguments of rlhf fit ...]
# NODE counts from 0; FIRST_NODE is the address of node 0, where port 29500 must be free. All nodes see the run's folder.
set -euo pipefail
node=$1 nodes=$2 first=$3 processes=${4:-8}
shift $(($# < 4 ? $# : 4))

exec torchrun --nnodes="$nodes" --node-rank="$node" --nproc-per-node="$processes" \
    --master-addr="$first" --master-port="${MASTER_PORT:-29500}" \
    -m rlhf_lightning.cli fit \
    --config "${CONFIG:-ppo_32b_rm.yaml}" --config strategies/fsdp2.yaml \
    --trainer.num_nodes="$nodes" --trainer.devices="$processes" --ckpt_path=auto "$@"
