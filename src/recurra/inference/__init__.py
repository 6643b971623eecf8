"""Uses of a trained model: evaluation, generation, scoring and dynamic evaluation.

The package imports nothing, so that importing one module does not import the others.
"""
