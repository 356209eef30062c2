"""Other federated-learning frameworks, timed beside the same bare torch loop."""
