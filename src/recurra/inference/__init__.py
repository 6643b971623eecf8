"""Uses of a trained model: evaluation, generation, scoring and dynamic evaluation.

Nothing is imported here, so that reading one module does not load the others.
"""
