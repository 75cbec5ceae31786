"""Draw 16 images with NumPy, onnxruntime and a scheduler of diffusers: python sample_onnx.py results/onnx [.int8]."""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
kind = sys.argv[2] if len(sys.argv) > 2 else ""
record = json.loads((folder / "export.json").read_text())
config = json.loads((folder / "scheduler_config.json").read_text())
boundaries = record["boundaries"]
graphs = [onnxruntime.InferenceSession(folder / f"interval_{i}{kind}.onnx") for i in range(len(boundaries) + 1)]

scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
scheduler.set_timesteps(record["protocol"]["steps"])
scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
tensor = scheduler.timesteps.float().new_tensor  # what a scheduler computes with

x = tensor(np.random.default_rng(0).standard_normal((16, *record["shape"])))
x = x * getattr(scheduler, "init_noise_sigma", 1.0)
for t in scheduler.timesteps:
    graph = graphs[np.searchsorted(boundaries, t.numpy(), side="right")]
    inputs = {"sample": scale(x, t).numpy(), "timestep": np.full(len(x), t, np.float32)}
    x = scheduler.step(tensor(graph.run(None, inputs)[0]), t, x).prev_sample
images = np.clip(127.5 * x.numpy() + 127.5, 0, 255).round().astype(np.uint8)
np.save("samples.npy", images.transpose(0, 2, 3, 1))
