"""python -m services.inventory"""

from chassis import run

if __name__ == "__main__":
    from services.inventory import service, settings

    run.serve(service.Inventory, settings.InventorySettings, "services.inventory")
