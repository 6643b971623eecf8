"""Compiled kernels: C++ sources, their build, and their Python bindings and buffers.

Kernels receive pointers and sizes. They are independent of cells, autograd and models. Every kernel
has a Python equivalent, which is used where the kernels cannot be built.
"""
