#!/bin/bash
# Pre-train on the GPUs of one node. Before the time is up the run is saved and the job put back into the queue, where it goes on.
#
#   sbatch slurm.sh STORE RUN [options of `oligovox pretrain`]
#
#SBATCH --job-name=oligovox-pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
store=$1
run=$2
shift 2

asked=no
stop() {
    asked=yes
    scancel --signal=TERM "$SLURM_JOB_ID" # reaches the training processes, not this script
}
trap stop USR1

srun oligovox pretrain "$store" --out "$run" "$@" &
training=$!
wait "$training" # returns early when the signal comes
status=$?
if [ "$asked" = yes ]; then
    wait "$training"
    status=$?
fi
if [ "$asked" = yes ] && [ ! -d "$run/model" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
