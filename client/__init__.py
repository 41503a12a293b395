"""The Python client of Drystone's HTTP API, and the `drystone` command on top of it.

from client import api

with api.Client("http://127.0.0.1:8480", token) as drystone:
    for vm in drystone.vms.all():
        print(vm["name"], vm["state"])
"""
