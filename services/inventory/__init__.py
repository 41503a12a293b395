"""What exists: data centers, clusters, hosts, storage domains, disks, VMs with their NICs."""
