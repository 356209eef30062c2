"""The Flower ClientApp of this project: what each SuperNode runs."""

from fedopt.client.resident import resident_app

app = resident_app()
