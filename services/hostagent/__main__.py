"""python -m services.hostagent"""

from chassis import run

if __name__ == "__main__":
    from services.hostagent import service, settings

    run.serve(service.Hostagent, settings.HostagentSettings)
