"""`trivium demo`: the sample dataset through the whole platform, and what a person would want to see of the result.

Needs what the extra `local` brings besides the stack: pyarrow, numpy, scikit-learn, Pillow.
"""
