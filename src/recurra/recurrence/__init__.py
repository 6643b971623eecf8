"""The mathematics of one recurrent layer through time; knows no text, no files, no training.

Tensor legend of this folder: T steps, B batch, I input width, H hidden width, P projected width,
G gates of a cell. Time comes first: inputs are (T, B, I) numbers or (T, B) token ids.
"""
