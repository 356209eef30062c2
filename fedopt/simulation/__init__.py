"""Where clients run in a simulation: grids that hand Flower messages to the ClientApp."""
