"""What is measured: the groups of cases with their peers and goals, and the sizes of each case."""

from __future__ import annotations

from dataclasses import dataclass

OURS, RUNTIME = "gatework", "gatework.runtime"
ONE_THREAD = "gatework, one thread"
ONEDNN_OFF = "torch.nn without oneDNN"
FLOAT32 = "torch.nn in float32"
LOOPS = ("eager loop", "torch.jit.script", "torch.compile", "JAX scan")
CELLS = ("peephole", "coupled", "layer-norm", "projected", "reset-before", "own")

# Sizes are T, B, I, H.
FIRST = [(100, 1, 64, 64), (100, 1, 256, 256), (100, 16, 64, 64), (100, 32, 256, 256), (1000, 8, 128, 128),
         (35, 20, 650, 650), (100, 64, 512, 512), (100, 32, 1024, 1024)]
TRAINING = [*FIRST,
            (20, 20, 200, 200), (35, 20, 1500, 1500),       # language models (Zaremba et al., 2014)
            (365, 256, 32, 20), (365, 256, 32, 256),        # hydrology (Kratzert et al.)
            (128, 64, 128, 128),                            # reinforcement learning
            (10_000, 1, 64, 64),                            # one long sequence
            (77, 13, 37, 101)]                              # nothing divides by anything
INFERENCE = [*TRAINING, (1, 1, 64, 64), (1, 1, 256, 256)]   # streamed sound, step by step
# Cases with sizes of their own: a batch of one row has no padding, and a long or a single sequence is one by itself.
BATCHES = [(100, 16, 64, 64), (1000, 8, 128, 128), (100, 32, 256, 256), (35, 20, 650, 650), (100, 64, 512, 512)]
LARGE = [(1, 1, 256, 256), (1, 1, 512, 512), (1, 1, 1024, 1024)]
SIZES = {"inference": INFERENCE, "inference-bfloat16": INFERENCE, "ragged": BATCHES, "resets": FIRST, "record": FIRST,
         "checkpoints": [(100_000, 1, 256, 256)], "streaming": [(1, 1, 64, 64), (1, 1, 256, 256), (1, 8, 64, 64)],
         "large-step": LARGE, "large-step-bfloat16": LARGE}
QUICK = [(100, 1, 64, 64), (100, 32, 256, 256), (77, 13, 37, 101)]
QUICK_SIZES = {"ragged": BATCHES[:1], "resets": FIRST[2:3], "record": FIRST[2:3], "checkpoints": [(5_000, 1, 64, 64)],
               "streaming": [(1, 1, 64, 64)], "large-step": LARGE[1:2], "large-step-bfloat16": LARGE[1:2],
               } | dict.fromkeys(CELLS, QUICK[:2])
# Compiling an unrolled loop takes a minute or two for every cell and size.
NOT_QUICK = {"torch.compile"}


@dataclass(frozen=True)
class Group:
    """One row of the goals: gatework against the best of its peers, in some cases.

    Peers that are `beside` are shown and do not count; where there are `ways` of our own beside the layer, the fastest
    one is ours. `each` is what every size must reach, `mean` the geometric mean
    of all. A ratio of "speed" is theirs over ours, one of "time" ours over theirs.
    """

    title: str
    cases: tuple[str, ...]
    peers: tuple[str, ...]
    each: float | None
    mean: float | None
    beside: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()
    ratio: str = "speed"
    unit: str = "ms"

    def ratios(self, measured: dict[str, dict]) -> dict[str, float]:
        """Of one size: the ratio for every peer, those beside as well, that was measured."""
        times = {name: one["median"] for name, one in measured.items() if "median" in one}
        ours = min(times[name] for name in (OURS, *self.ways) if name in times)
        return {name: times[name] / ours if self.ratio == "speed" else ours / times[name]
                for name in (*self.peers, *self.beside) if name in times}

    def worst(self, ratios: dict[str, float]) -> float | None:
        """The ratio over the best of the peers that count; None if none was measured."""
        counted = [ratios[name] for name in self.peers if name in ratios]
        return (min(counted) if self.ratio == "speed" else max(counted)) if counted else None


def time_group(title: str, case: str, peer: str, bound: float) -> Group:
    return Group(title, (case,), (peer,), bound, None, ratio="time")


GROUPS = [
    Group("LSTM, training", ("lstm",), ("torch.nn", ONEDNN_OFF), 1.05, 1.8, beside=("JAX scan",)),
    Group("LSTM, inference", ("inference",), ("torch.nn", ONEDNN_OFF, "ONNX Runtime", "OpenVINO", "JAX scan"), 0.95,
          1.2, ways=(RUNTIME,)),
    Group("GRU and RNN, training", ("gru", "rnn"), ("torch.nn", "JAX scan"), 1.2, 2.5),
    Group("Cells that torch.nn has not fused, training", CELLS, ("torch.nn", *LOOPS), 1.3, 3.0),
    Group("LSTM, training, bfloat16", ("lstm-bfloat16",), ("torch.nn",), 1.2, 2.0, beside=(FLOAT32,)),
    Group("LSTM, inference, bfloat16", ("inference-bfloat16",), ("torch.nn", "OpenVINO"), 1.0, 1.3, beside=(FLOAT32,),
          ways=(RUNTIME,)),
    Group("Two layers, and bidirectional, training", ("two-layers", "bidirectional"), ("torch.nn",), 1.05, 1.5),
    Group("One step through Python", ("streaming",), ("ONNX Runtime",), 1.5, 2.0, beside=("torch.nn.LSTMCell",),
          unit="us"),
    Group("One step of a larger layer, two threads, float32 and bfloat16 weights over ONNX Runtime's float32",
          ("large-step", "large-step-bfloat16"), ("ONNX Runtime",), None, None, beside=(ONE_THREAD,), unit="us"),
    time_group("Peephole LSTM, training time over our own LSTM's", "peephole", "gatework LSTM", 1.15),
    Group("Ragged batch, training time over dense ones of as many valid steps", ("ragged",),
          ("gatework, dense, half as long", "gatework, dense, half the rows"), 1.1, None, ratio="time"),
    Group("Ragged batch, training", ("ragged",), ("torch.nn, packed",), None, None),
    time_group("Resets in one step of fifty, training time over none", "resets", "gatework, none", 1.05),
    Group("Resets, training", ("resets",), ("torch.nn, step by step",), None, None),
    time_group("Recording i, f and c, training time over recording nothing", "record", "gatework, none", 1.1),
    Group("Recording i, f and c, training", ("record",), ("eager loop",), None, None),
    time_group("Checkpoints, training time over keeping all", "checkpoints", "gatework, all kept", 1.5),
]
CASES = tuple(dict.fromkeys(case for group in GROUPS for case in group.cases))


def sizes_of(case: str, quick: bool) -> list[tuple]:
    return QUICK_SIZES.get(case, QUICK) if quick else SIZES.get(case, TRAINING)
