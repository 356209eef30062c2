"""The Flower ClientApp of this project: what each SuperNode runs."""

from fedopt.client.app import client_app

app = client_app()
