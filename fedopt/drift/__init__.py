"""Concept drift: what changes in clients' examples, for which clients, and by which round."""
