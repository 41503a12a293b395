"""`python -m gateway` runs the front door."""

from chassis import run  # isort: skip  # first: it patches sockets and threads

from gateway.app import Gateway
from gateway.settings import GatewaySettings

if __name__ == "__main__":
    run.serve(Gateway, GatewaySettings)
