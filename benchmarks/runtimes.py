"""What only runs a trained model: gatework.runtime, and ONNX Runtime and OpenVINO with the LSTM node of a standard ONNX
file."""

from __future__ import annotations

import tempfile
import time

import numpy as np
from machine import THREADS

import gatework


class Runtime:
    """The saved layer, without torch."""

    def __init__(self, layer: gatework.nn.Recurrent, x: np.ndarray, products: str | None):
        with tempfile.TemporaryDirectory() as folder:
            gatework.nn.save(layer, folder)
            self.model = gatework.runtime.load(folder, threads=THREADS, products=products)
        self.x, self.state = x, self.model.initial_state(x.shape[1])

    def results(self) -> list[np.ndarray]:
        return [self.call()]

    def call(self) -> np.ndarray:
        if len(self.x) == 1:
            return self.model.step(self.x[0], self.state)[0][None]
        return self.model.run(self.x, self.state)[0]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self.call()
            seconds.append(time.perf_counter() - start)
        return seconds


class OnnxRuntime:
    def __init__(self, layer: gatework.nn.Recurrent, x: np.ndarray):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(gatework.convert.to_onnx(layer).SerializeToString(), options)
        self.given = inputs(layer, x)

    def results(self) -> list[np.ndarray]:
        return self.session.run(["output"], self.given)

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self.session.run(["output"], self.given)
            seconds.append(time.perf_counter() - start)
        return seconds


class OpenVino:
    """The model compiled for the sizes at hand; input and output are shared with the runtime, not copied."""

    def __init__(self, layer: gatework.nn.Recurrent, x: np.ndarray, precision: str):
        import openvino
        core = openvino.Core()
        model = core.read_model(gatework.convert.to_onnx(layer).SerializeToString())
        self.given = inputs(layer, x)
        model.reshape({name: list(a.shape) for name, a in self.given.items()})
        # bfloat16 is its own choice where the processor has it, so float32 has to be said as well.
        compiled = core.compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"})
        self.request = compiled.create_infer_request()

    def results(self) -> list[np.ndarray]:
        return [np.array(self.request.infer(self.given)["output"])]

    def run(self, repetitions: int) -> list[float]:
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            self.request.infer(self.given, share_inputs=True, share_outputs=True)
            seconds.append(time.perf_counter() - start)
        return seconds


def inputs(layer: gatework.nn.Recurrent, x: np.ndarray) -> dict[str, np.ndarray]:
    zero = np.zeros((1, x.shape[1], layer.hidden_size), np.float32)
    return {"input": x, "h_0": zero, "c_0": zero}
