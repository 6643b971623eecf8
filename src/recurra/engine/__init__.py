"""A whole model: training steps, gradients, parameter updates and compiled decoding."""
