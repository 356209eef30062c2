"""Local training of a client: plan, engine, objective terms, state, and the Flower ClientApp."""
