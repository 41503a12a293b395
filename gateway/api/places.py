"""Where things are: data centers, clusters, hosts."""

from __future__ import annotations

from contracts import inventory
from gateway.api.route import Route

ROUTES = (
    Route("GET", "/data-centers", inventory.list_data_centers, "List data centers"),
    Route(
        "POST", "/data-centers", inventory.create_data_center, "Make a data center", 201, "/data-centers/{id}", ("id",)
    ),
    Route("GET", "/data-centers/{id}", inventory.get_data_center, "Show a data center"),
    Route("PATCH", "/data-centers/{id}", inventory.change_data_center, "Change a data center"),
    Route("DELETE", "/data-centers/{id}", inventory.delete_data_center, "Delete an empty data center", 204),
    Route("GET", "/clusters", inventory.list_clusters, "List clusters"),
    Route("POST", "/clusters", inventory.create_cluster, "Make a cluster", 201, "/clusters/{id}", ("id",)),
    Route("GET", "/clusters/{id}", inventory.get_cluster, "Show a cluster"),
    Route("PATCH", "/clusters/{id}", inventory.change_cluster, "Change a cluster"),
    Route("DELETE", "/clusters/{id}", inventory.delete_cluster, "Delete an empty cluster", 204),
    Route("GET", "/hosts", inventory.list_hosts, "List hosts"),
    Route("POST", "/hosts", inventory.create_host, "Add a host by the id of its agent", 201, "/hosts/{id}", ("id",)),
    Route("GET", "/hosts/{id}", inventory.get_host, "Show a host"),
    Route("DELETE", "/hosts/{id}", inventory.delete_host, "Forget a host on which nothing runs", 204),
)
