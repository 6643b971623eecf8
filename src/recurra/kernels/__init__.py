"""Compiled kernels: C++ sources, the builder that compiles them once for this machine, the door.

Pointers and sizes in, numbers out: knows neither cells' names nor autograd nor models. Whoever uses
a kernel has the same thing in Python beside it, for machines where none can be built.
"""
