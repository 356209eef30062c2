"""Small reference models and the flat layout of a model's parameters (torch only)."""
