#!/bin/bash
# A Ray cluster inside a Slurm allocation, and one run on it:
#   sbatch jobs/cluster/slurm.sh jobs/quickstart.yaml
# Submitted again, it goes on with what is committed. The job's output and this folder's .venv lie on
# a file system that all machines mount.
#SBATCH --job-name=negtemp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
set -euo pipefail

job=${1:?usage: sbatch $0 JOB}
cd "${SLURM_SUBMIT_DIR:-.}"
source .venv/bin/activate

head=${SLURMD_NODENAME:-$(hostname)}
port=6379
# Ray runs what anybody sends to its ports, so it asks for a token.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

# --block keeps a step alive as long as its Ray; Slurm ends the steps with the allocation.
start() {
  srun --overlap --nodes="$1" --ntasks="$1" "${@:4}" \
    ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" "$2" "$3" &
}
start 1 --head --port=$port --nodelist="$head"
until ray status --address="$head:$port" >/dev/null 2>&1; do sleep 2; done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  start $((SLURM_JOB_NUM_NODES - 1)) --address="$head:$port" --disable-usage-stats --exclude="$head"
fi

# A run wants all of its replicas' GPUs from the start.
python - "$head:$port" "$SLURM_JOB_NUM_NODES" <<'EOF'
import sys, time
import ray

ray.init(address=sys.argv[1], logging_level="WARNING")
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(2)
EOF

negtemp run "$job" --address "$head:$port" &
run=$!
# Three minutes before the end (--signal above) the run leaves its output in order.
trap 'kill -TERM $run' TERM
wait $run || code=$?
# A trap ends `wait` before the run has ended.
if kill -0 $run 2>/dev/null; then wait $run || code=$?; fi
exit "${code:-0}"
