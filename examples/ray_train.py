"""The recipe classify-text on several workers of a Ray cluster, also on a single machine: pip install "ray[train]".

    python examples/ray_train.py reviews.csv /shared/reviews-model --workers 2

Data and model lie on a disk that all machines see. A worker that dies is replaced, and the run goes on from its last
checkpoint.
"""

from pathlib import Path

import cyclopts
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer


def work(config: dict) -> None:
    """What every worker runs; Ray has told them of each other by then."""
    from gatework.recipes.checkpoints import CHECKPOINT
    from gatework.recipes.classify_text import ClassifyText, Settings
    from gatework.recipes.run import train

    here, out = get_context(), Path(config["out"])
    devices = here.get_local_world_size()
    settings = Settings(devices=devices, nodes=here.get_world_size() // devices, **config["settings"])
    train(ClassifyText, config["data"], settings, out, resume=(out / CHECKPOINT).exists())


def main(data: Path, out: Path, /, *, workers: int = 2, epochs: int = 6, batch_size: int = 16):
    """Train a classifier of texts.

    Args:
        data: Table of texts and labels.
        out: Folder for the model.
        workers: Processes that train it together, as many on each machine.
        epochs: Passes over the data.
        batch_size: Rows that each of them reads side by side.
    """
    config = {"data": str(data.resolve()), "out": str(out.resolve()),
              "settings": {"epochs": epochs, "batch_size": batch_size}}
    TorchTrainer(work, train_loop_config=config, torch_config=TorchConfig(backend="gloo"),
                 scaling_config=ScalingConfig(num_workers=workers),
                 run_config=RunConfig(failure_config=FailureConfig(max_failures=3))).fit()


if __name__ == "__main__":
    cyclopts.run(main)
