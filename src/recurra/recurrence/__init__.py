"""One recurrent layer through time: cells, backends, dropout and precision.

Tensor legend: T steps, B batch, I input width, H hidden width, P projected width, G gates.
Time comes first: inputs are (T, B, I) floats or (T, B) token ids.
"""
