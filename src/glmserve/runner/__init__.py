"""From a scheduled batch to sampled token ids: weights, K/V pool, inputs on the device, CUDA graphs, sampling."""
