"""The Flower ServerApp of this project: what `flwr run` starts on the server."""

from fedopt.run import server_app

app = server_app()
