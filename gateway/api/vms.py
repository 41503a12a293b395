"""Virtual machines and their power, and the templates that they are made from.

Start, shutdown and power-off are asked for at sub-resources; the VM's own `state` tells how far it came. They need
no key: asking twice equals asking once.
"""

from __future__ import annotations

from contracts import inventory
from gateway.api.route import Route

ROUTES = (
    Route("GET", "/vms", inventory.list_vms, "List virtual machines"),
    Route(
        "POST",
        "/vms",
        inventory.create_vm,
        "Make a virtual machine, also from a template",
        201,
        "/vms/{id}",
        ("id",),
        ("nics",),
    ),
    Route("GET", "/templates", inventory.list_templates, "List templates"),
    Route(
        "POST",
        "/templates",
        inventory.create_template,
        "Make a template from a virtual machine that is down; its state tells how far the copies are",
        202,
        "/templates/{id}",
        ("id",),
    ),
    Route("GET", "/templates/{id}", inventory.get_template, "Show a template"),
    Route("DELETE", "/templates/{id}", inventory.delete_template, "Delete a template that nothing stands on", 204),
    Route("GET", "/vms/{id}", inventory.get_vm, "Show a virtual machine"),
    Route("PATCH", "/vms/{id}", inventory.change_vm, "Change a virtual machine", parts=("nics",)),
    Route("DELETE", "/vms/{id}", inventory.delete_vm, "Delete a virtual machine that is down", 204),
    Route("POST", "/vms/{id}/start", inventory.start_vm, "Start a virtual machine"),
    Route("POST", "/vms/{id}/shutdown", inventory.shut_down_vm, "Ask the guest to shut down"),
    Route("POST", "/vms/{id}/power-off", inventory.power_off_vm, "Cut the power of a virtual machine"),
)
