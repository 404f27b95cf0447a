#!/bin/bash
# A recipe on two machines with four processes each: sbatch examples/slurm.sh
# Data, model and environment lie on a disk that all machines see. SLURM starts the job again after a failure of a
# machine or when it has to make room, and the run goes on from its last checkpoint.
#SBATCH --job-name=reviews
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=reviews.log
set -euo pipefail

data=$SLURM_SUBMIT_DIR/reviews.csv
model=$SLURM_SUBMIT_DIR/reviews-model
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK  # each process has so many cores

if [ -f "$model/model.json" ]; then
    echo "$model is finished"
    exit
fi
resume=()
if [ -f "$model/last.ckpt" ]; then
    resume=(--resume)
fi

# --devices is --ntasks-per-node, --nodes is --nodes
srun "$SLURM_SUBMIT_DIR/.venv/bin/gatework" train classify-text "$data" --out "$model" \
    --nodes 2 --devices 4 --batch-size 8 "${resume[@]}"
