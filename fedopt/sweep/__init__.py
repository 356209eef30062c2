"""Many runs of one question: what is varied, in which order it is run, what came of it.

Runs are processes of `fedopt run`; this package starts and watches them, and reads the folders that
they leave. It imports neither torch nor Flower nor Ray.
"""
